//! Waits for a condition instead of a time.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

/// Asks again and again until `condition` holds; an error once `patience` is over.
pub fn wait_until(what: &str, patience: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + patience;
    while !condition()? {
        ensure!(Instant::now() < end, "waited {patience:?} in vain for this: {what}");
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_condition_is_asked_until_it_holds() {
        let mut asked = 0;
        let counted = wait_until("three questions", Duration::from_secs(5), || {
            asked += 1;
            Ok(asked == 3)
        });
        assert!(counted.is_ok());
        assert_eq!(asked, 3);
        let error = wait_until("never", Duration::ZERO, || Ok(false)).unwrap_err();
        assert_eq!(error.to_string(), "waited 0ns in vain for this: never");
    }
}
