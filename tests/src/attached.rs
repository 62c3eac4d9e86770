//! XDP programs that do one thing with every frame, for the ends of a wire.

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    programs::{Xdp, XdpMode},
};
use dosguard_flood_config::{BOUNCE_PROGRAM, DROP_PROGRAM, PASS_PROGRAM};

use crate::{
    netns::Namespace,
    objects::{FLOOD_OBJECT, real},
};

/// A program on an interface of a namespace, in native mode, until it is dropped.
#[derive(Debug)]
pub struct Attached {
    _object: Ebpf,
}

impl Attached {
    /// Every frame passes. A veth end takes what its peer sends by `XDP_TX` only where NAPI runs, which a program starts.
    pub fn passing(namespace: &Namespace, interface: &str) -> Result<Self> {
        Self::start(namespace, interface, PASS_PROGRAM)
    }

    /// Every frame is dropped.
    pub fn dropping(namespace: &Namespace, interface: &str) -> Result<Self> {
        Self::start(namespace, interface, DROP_PROGRAM)
    }

    /// Every frame goes back, with its MAC addresses swapped.
    pub fn bouncing(namespace: &Namespace, interface: &str) -> Result<Self> {
        Self::start(namespace, interface, BOUNCE_PROGRAM)
    }

    fn start(namespace: &Namespace, interface: &str, name: &str) -> Result<Self> {
        let mut object = Ebpf::load(real(FLOOD_OBJECT)?).context("cannot load the lab's programs")?;
        let program: &mut Xdp =
            object.program_mut(name).with_context(|| format!("no program `{name}`"))?.try_into()?;
        program.load().with_context(|| format!("the kernel refused `{name}`"))?;
        namespace
            .run_in(|| program.attach(interface, XdpMode::Driver))?
            .with_context(|| format!("cannot attach to `{interface}` in `{}`", namespace.name()))?;
        Ok(Self { _object: object })
    }
}
