//! The SYN flood: live frames of a test run, rewritten and sent by a small XDP program.
//!
//! One thread sends from one processor; the frames arrive on that same processor, because the receiving veth end is
//! polled where the frames were queued. For two processors start two floods.

mod template;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    Ebpf,
    maps::{Array, PerCpuArray},
    programs::{ProgramError, TestRun as _, TestRunAttrs, TestRunOptions, Xdp, XdpMode},
    sys::SyscallError,
};
use dosguard_flood_config::{
    CONFIG_MAP, CONFIG_WORDS, FloodConfig, PROGRAM, SENT_MAP, TEMPLATE_MAP, TEMPLATE_WORDS, Template,
};
use nix::net::if_::if_nametoindex;

use crate::{
    cpu,
    netns::Namespace,
    objects::{FLOOD_OBJECT, real},
    packet::Frame,
};

/// No flood lasts longer.
pub const MAX_DURATION: Duration = Duration::from_secs(60);

/// Frames sent between two polls of the receiver, whose queue holds 256.
pub const DEFAULT_BATCH: u32 = 64;

/// Frames per system call, so that a request to stop is soon noticed.
const MAX_FRAMES_PER_CALL: u64 = 4096;

/// How many times a second a paced flood sends, unless frames are fewer than that.
const CALLS_PER_SECOND: u64 = 500;

/// A flood being described.
#[derive(Clone, Debug)]
#[must_use = "call `.start(…)` or `.run(…)`"]
pub struct Flood {
    template: Frame,
    source_count: u32,
    source_random: bool,
    networks: bool,
    port_count: u32,
    rate_per_second: Option<u64>,
    frames: u64,
    duration: Duration,
    batch: u32,
    cpu: Option<usize>,
}

impl Flood {
    /// Sends `template`, a TCP segment over IPv4 or IPv6, as fast as possible for ten seconds.
    pub fn new(template: Frame) -> Self {
        Self {
            template,
            source_count: 1,
            source_random: false,
            networks: false,
            port_count: 1,
            rate_per_second: None,
            frames: u64::MAX,
            duration: Duration::from_secs(10),
            batch: DEFAULT_BATCH,
            cpu: None,
        }
    }

    /// `count` consecutive source addresses, beginning with the template's, take turns.
    pub fn sources(self, count: u32) -> Self {
        Self { source_count: count, source_random: false, ..self }
    }

    /// Each frame draws one of `count` consecutive source addresses, beginning with the template's.
    pub fn random_sources(self, count: u32) -> Self {
        Self { source_count: count, source_random: true, ..self }
    }

    /// Over IPv6, sources are networks of 64 bits, and the second half of those is what differs.
    pub fn networks(self) -> Self {
        Self { networks: true, ..self }
    }

    /// `count` consecutive source ports, beginning with the template's, take turns.
    pub fn ports(self, count: u32) -> Self {
        Self { port_count: count, ..self }
    }

    /// Sends that many frames a second. Below 1,000 a second no second ever has more than one frame too many, even where
    /// the machine had stopped in between; a faster flood catches up.
    pub fn rate(self, frames_per_second: u64) -> Self {
        Self { rate_per_second: Some(frames_per_second), ..self }
    }

    /// Ends after exactly that many frames.
    pub fn frames(self, frames: u64) -> Self {
        Self { frames, ..self }
    }

    /// Ends after that time, at most [`MAX_DURATION`].
    pub fn duration(self, duration: Duration) -> Self {
        Self { duration, ..self }
    }

    /// Other than [`DEFAULT_BATCH`]; beyond 256 frames are lost on the way.
    pub fn batch(self, frames: u32) -> Self {
        Self { batch: frames, ..self }
    }

    /// Sends from, and so is received on, one processor.
    pub fn cpu(self, cpu: usize) -> Self {
        Self { cpu: Some(cpu), ..self }
    }

    /// Starts sending out of an interface of a namespace.
    pub fn start(self, namespace: &Namespace, interface: &str) -> Result<RunningFlood> {
        ensure!(self.rate_per_second != Some(0), "a flood of no frames a second never ends");
        ensure!(self.duration <= MAX_DURATION, "a flood may last {MAX_DURATION:?} at most");
        ensure!(self.source_count > 0 && self.port_count > 0, "a flood needs a source and a port");
        let config = FloodConfig {
            source_count: self.source_count,
            source_random: self.source_random.into(),
            port_count: self.port_count,
            ..template::describe(&self.template, self.networks)?
        };
        let interface_index = namespace
            .run_in(|| if_nametoindex(interface))?
            .with_context(|| format!("no interface `{interface}` in `{}`", namespace.name()))?;
        let generator = Generator::load(config, &self.template, interface_index, self.batch)?;
        let shared = Arc::new(Shared::default());
        let thread = namespace.spawn_in("flood", {
            let shared = Arc::clone(&shared);
            move || self.send(&generator, &shared)
        })?;
        Ok(RunningFlood { shared, thread: Some(thread) })
    }

    /// Sends out of an interface of a namespace until the bound is reached.
    pub fn run(self, namespace: &Namespace, interface: &str) -> Result<FloodReport> {
        self.start(namespace, interface)?.join()
    }

    fn send(&self, generator: &Generator, shared: &Shared) -> Result<FloodReport> {
        if let Some(cpu) = self.cpu {
            cpu::pin(cpu)?;
        }
        let start = Instant::now();
        let mut pace = self.rate_per_second.map(|rate| Pace::new(rate, start));
        let mut asked = 0;
        while !shared.stop.load(Ordering::Relaxed) && asked < self.frames && start.elapsed() < self.duration {
            let turn = match &mut pace {
                None => MAX_FRAMES_PER_CALL,
                Some(pace) => match pace.due(Instant::now()) {
                    Ok(frames) => frames,
                    Err(wait) => {
                        thread::sleep(wait);
                        continue;
                    }
                },
            };
            let turn = turn.min(self.frames - asked).min(MAX_FRAMES_PER_CALL);
            asked += turn;
            shared.sent.store(asked, Ordering::Relaxed);
            generator.send(u32::try_from(turn)?)?;
        }
        // The kernel's own count, which leaves out what an interrupted call did not send.
        Ok(FloodReport { sent: generator.sent()?, elapsed: start.elapsed() })
    }
}

/// What a flood did.
#[derive(Clone, Copy, Debug)]
pub struct FloodReport {
    /// Frames handed to the interface, counted by the program that sent them.
    pub sent: u64,
    /// From the first frame to the last.
    pub elapsed: Duration,
}

impl FloodReport {
    /// Frames a second.
    #[must_use]
    pub fn rate_per_second(&self) -> u64 {
        let micros = self.elapsed.as_micros().max(1);
        u64::try_from(u128::from(self.sent) * 1_000_000 / micros).unwrap_or(u64::MAX)
    }
}

/// A flood that is going on; dropping it ends it.
#[derive(Debug)]
pub struct RunningFlood {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<FloodReport>>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    sent: AtomicU64,
}

impl RunningFlood {
    /// How many frames have been sent so far, those under way included.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// Whether the bound was reached.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Ends it now.
    pub fn stop(self) -> Result<FloodReport> {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.join()
    }

    /// Waits until the bound is reached.
    pub fn join(mut self) -> Result<FloodReport> {
        let Some(thread) = self.thread.take() else { bail!("the flood has ended already") };
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for RunningFlood {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Whoever wanted the result has called `join`.
            drop(thread.join());
        }
    }
}

/// The loaded program with everything a call needs.
struct Generator {
    object: Ebpf,
    // Removed after the object, which is attached in there.
    _stage: Namespace,
    frame: Vec<u8>,
    context: Vec<u8>,
    batch: u32,
}

impl Generator {
    fn load(config: FloodConfig, template: &Frame, interface_index: u32, batch: u32) -> Result<Self> {
        let mut object = Ebpf::load(real(FLOOD_OBJECT)?).context("cannot load the flood generator")?;
        let map = object.map_mut(CONFIG_MAP).with_context(|| format!("no map `{CONFIG_MAP}`"))?;
        let mut map: Array<_, [u32; CONFIG_WORDS]> = Array::try_from(map)?;
        map.set(0, config.to_words(), 0).context("cannot configure the flood generator")?;
        let map = object.map_mut(TEMPLATE_MAP).with_context(|| format!("no map `{TEMPLATE_MAP}`"))?;
        let mut map: Array<_, Template> = Array::try_from(map)?;
        map.set(0, words_of(template), 0).context("cannot tell the flood generator its frame")?;
        let program: &mut Xdp =
            object.program_mut(PROGRAM).with_context(|| format!("no program `{PROGRAM}`"))?.try_into()?;
        program.load().context("the kernel refused the flood generator")?;
        // For the duration of each test run, the kernel adds the program to its XDP dispatcher and waits for two RCU grace
        // periods, about 26 ms. A program that is attached somewhere is in there already. The loopback of a namespace
        // that nobody uses is such a place; no packet ever reaches it.
        let stage = Namespace::new("stage")?;
        stage.run_in(|| program.attach("lo", XdpMode::Skb))?.context("cannot attach the flood generator")?;
        let length = u32::try_from(template.len())?;
        // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context = [0, length, 0, interface_index, 0, 0].into_iter().flat_map(u32::to_ne_bytes).collect();
        Ok(Self { object, _stage: stage, frame: template.to_vec(), context, batch })
    }

    fn send(&self, frames: u32) -> Result<()> {
        let program: &Xdp =
            self.object.program(PROGRAM).with_context(|| format!("no program `{PROGRAM}`"))?.try_into()?;
        let result = program.test_run(TestRunOptions {
            data_in: Some(&self.frame),
            ctx_in: Some(&self.context),
            repeat: frames,
            attrs: TestRunAttrs::new().xdp_live_frames(self.batch.min(frames)),
            ..TestRunOptions::default()
        });
        match result {
            Ok(_) => Ok(()),
            Err(ProgramError::SyscallError(SyscallError { io_error, .. }))
                if io_error.kind() == std::io::ErrorKind::Interrupted =>
            {
                Ok(())
            }
            Err(error) => Err(error).context("cannot send live frames (the kernel does since Linux 5.18)"),
        }
    }

    fn sent(&self) -> Result<u64> {
        let map = self.object.map(SENT_MAP).with_context(|| format!("no map `{SENT_MAP}`"))?;
        let map: PerCpuArray<_, u64> = PerCpuArray::try_from(map)?;
        Ok(map.get(&0, 0).context("cannot count the frames sent")?.iter().sum())
    }
}

/// What a frame begins with.
fn words_of(frame: &Frame) -> Template {
    let mut words = [0; TEMPLATE_WORDS];
    for (word, bytes) in words.iter_mut().zip(frame.as_chunks().0) {
        *word = u16::from_ne_bytes(*bytes);
    }
    words
}

/// When a paced flood sends how much.
#[derive(Debug)]
struct Pace {
    next: Instant,
    interval: Duration,
    frames: u64,
}

impl Pace {
    fn new(frames_per_second: u64, start: Instant) -> Self {
        let frames = (frames_per_second / CALLS_PER_SECOND).max(1);
        let nanoseconds = frames * 1_000_000_000 / frames_per_second;
        Self { next: start, interval: Duration::from_nanos(nanoseconds), frames }
    }

    /// How many frames to send now, or how long to wait before asking again.
    fn due(&mut self, now: Instant) -> Result<u64, Duration> {
        if now < self.next {
            // Waits are short, so that a request to stop is soon noticed.
            return Err((self.next - now).min(Duration::from_millis(20)));
        }
        // A slow source never makes up for more than it is late within one interval; a flood does.
        let is_slow = self.frames == 1;
        let base = if is_slow && now - self.next > self.interval { now } else { self.next };
        self.next = base + self.interval;
        Ok(self.frames)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_source_never_catches_up() {
        let start = Instant::now();
        let mut pace = Pace::new(100, start);
        assert_eq!(pace.due(start), Ok(1));
        assert_eq!(pace.due(start + Duration::from_millis(9)), Err(Duration::from_millis(1)));
        assert_eq!(pace.due(start + Duration::from_millis(11)), Ok(1));
        assert_eq!(
            pace.due(start + Duration::from_millis(11)),
            Err(Duration::from_millis(9)),
            "a little late"
        );
        assert_eq!(pace.due(start + Duration::from_millis(500)), Ok(1));
        assert_eq!(pace.due(start + Duration::from_millis(501)), Err(Duration::from_millis(9)), "very late");
    }

    #[test]
    fn a_flood_makes_up_for_what_it_missed() {
        let start = Instant::now();
        let mut pace = Pace::new(250_000, start);
        assert_eq!(pace.due(start), Ok(500));
        let late = start + Duration::from_millis(10);
        let sent: u64 = std::iter::from_fn(|| pace.due(late).ok()).sum();
        assert_eq!(sent, 5 * 500);
    }

    #[test]
    fn the_rate_is_frames_over_time() {
        let report = FloodReport { sent: 1_000, elapsed: Duration::from_millis(500) };
        assert_eq!(report.rate_per_second(), 2_000);
    }
}
