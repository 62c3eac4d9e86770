//! Sends exactly these frames, in order, through a packet socket.

use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, ensure};
use nix::{
    ifaddrs::getifaddrs,
    setsockopt_impl, sockopt_impl,
    sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, sendto, setsockopt, socket},
};

use crate::{cpu, netns::Namespace};

/// No call sends more; a flood is for that.
pub const MAX_FRAMES: usize = 100_000;

/// Sends the frames out of an interface of a namespace, as they are, from any processor.
pub fn send_frames<F: AsRef<[u8]> + Sync>(
    namespace: &Namespace,
    interface: &str,
    frames: &[F],
) -> Result<()> {
    send(namespace, interface, frames, None)
}

/// The same from one processor, which is also the one that receives them.
pub fn send_frames_from_cpu<F: AsRef<[u8]> + Sync>(
    namespace: &Namespace,
    interface: &str,
    frames: &[F],
    cpu: usize,
) -> Result<()> {
    send(namespace, interface, frames, Some(cpu))
}

fn send<F: AsRef<[u8]> + Sync>(
    namespace: &Namespace,
    interface: &str,
    frames: &[F],
    cpu: Option<usize>,
) -> Result<()> {
    namespace.run_in(|| {
        if let Some(cpu) = cpu {
            cpu::pin(cpu)?;
        }
        Sender::open_here(interface)?.send(frames)
    })?
}

sockopt_impl!(
    /// Whether frames go past the interface's queue.
    QdiscBypass,
    SetOnly,
    libc::SOL_PACKET,
    libc::PACKET_QDISC_BYPASS,
    bool
);

/// For frames that are sent now and then: entering a namespace each time may take many milliseconds.
#[derive(Debug)]
pub struct Sender {
    socket: OwnedFd,
    address: LinkAddr,
}

impl Sender {
    /// Sends out of an interface of a namespace, from the processor that the caller of [`Self::send`] runs on.
    pub fn new(namespace: &Namespace, interface: &str) -> Result<Self> {
        namespace.run_in(|| Self::open_here(interface))?
    }

    fn open_here(interface: &str) -> Result<Self> {
        let address = link_address(interface)?;
        // Protocol 0: this socket receives nothing.
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)
            .context("cannot open a packet socket")?;
        // Makes the frame take the transmit queue of the processor it is sent from, instead of one chosen by a hash.
        setsockopt(&socket, QdiscBypass, &true).context("cannot send past the queue of an interface")?;
        Ok(Self { socket, address })
    }

    /// Sends the frames in order, as they are.
    pub fn send<F: AsRef<[u8]>>(&self, frames: &[F]) -> Result<()> {
        ensure!(frames.len() <= MAX_FRAMES, "{} frames at once are more than {MAX_FRAMES}", frames.len());
        for (number, frame) in frames.iter().enumerate() {
            let frame = frame.as_ref();
            let sent = sendto(self.socket.as_raw_fd(), frame, &self.address, MsgFlags::empty())
                .with_context(|| format!("cannot send frame {number} of {} bytes", frame.len()))?;
            ensure!(sent == frame.len(), "frame {number}: {sent} of {} bytes were sent", frame.len());
        }
        Ok(())
    }
}

/// The address of an interface of this namespace.
pub(crate) fn link_address(interface: &str) -> Result<LinkAddr> {
    getifaddrs()
        .context("cannot list the interfaces")?
        .filter(|entry| entry.interface_name == interface)
        .find_map(|entry| entry.address?.as_link_addr().copied())
        .with_context(|| format!("no interface `{interface}`"))
}
