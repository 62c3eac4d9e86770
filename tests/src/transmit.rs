//! Sends exactly these frames, in order, through a packet socket.

#![expect(unsafe_code, reason = "nix has no wrapper for options of packet sockets")]

use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, ensure};
use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, sendto, socket},
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
        switch_on(&socket, libc::PACKET_QDISC_BYPASS)?;
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

/// Switches an option of packet sockets on.
pub(crate) fn switch_on(socket: &OwnedFd, option: libc::c_int) -> Result<()> {
    let on: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of_val(&on))?;
    // SAFETY: the descriptor is open, and the option's value is a `c_int` of which pointer and length are given.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, option, std::ptr::from_ref(&on).cast(), length)
    };
    ensure!(
        result == 0,
        "cannot set option {option} of a packet socket: {}",
        std::io::Error::last_os_error()
    );
    Ok(())
}
