//! What systemd is told: that the daemon is ready, that it is alive, and in a line how it does.
//!
//! Without systemd, which sets `NOTIFY_SOCKET`, nothing is told to anybody.

use std::time::Duration;

use sd_notify::NotifyState;

/// How often the line is told, at least.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);

/// How often to call [`alive`]: twice as often as the watchdog asks. None if nobody listens.
pub fn interval() -> Option<Duration> {
    std::env::var_os("NOTIFY_SOCKET")?;
    Some(interval_for(sd_notify::watchdog_enabled()))
}

/// Whether whoever is told listens at an abstract socket, which is in no folder.
pub fn is_abstract() -> bool {
    use std::os::unix::ffi::OsStrExt as _;
    std::env::var_os("NOTIFY_SOCKET").is_some_and(|socket| socket.as_bytes().first() == Some(&b'@'))
}

fn interval_for(watchdog: Option<Duration>) -> Duration {
    watchdog.map_or(STATUS_INTERVAL, |watchdog| STATUS_INTERVAL.min(watchdog / 2))
}

/// The daemon serves: at its start, and after each [`reloading`].
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The daemon applies its files anew; [`ready`] ends that, whatever came of it.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => log::warn!("systemd was not told of the reload: {error}"),
    }
}

/// The daemon ends.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// The daemon is alive, and this is how it does. To be called from the event loop: one that hangs is not alive.
pub fn alive(status: &str) {
    tell(&[NotifyState::Watchdog, NotifyState::Status(status)]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        log::warn!("systemd was not told how the daemon does: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_is_told_twice_as_often_as_it_asks() {
        let seconds = Duration::from_secs;
        let asked = [None, Some(seconds(30)), Some(seconds(3)), Some(seconds(600))];
        let told = [seconds(10), seconds(10), Duration::from_millis(1_500), seconds(10)];
        assert_eq!(asked.map(interval_for), told);
    }
}
