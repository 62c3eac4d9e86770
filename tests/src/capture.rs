//! What arrives at an interface, byte for byte.

use std::{
    io::IoSliceMut,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    setsockopt_impl, sockopt_impl,
    sys::socket::{
        AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind,
        recvmsg, setsockopt, socket, sockopt,
    },
};

use crate::{netns::Namespace, transmit::link_address};

/// Room for what has arrived and was not looked at yet.
const BUFFER: usize = 8 << 20;
/// The longest frame that is read whole.
const LONGEST: usize = 2048;

/// Where a frame's first VLAN tag is.
const TAG: usize = 12;

sockopt_impl!(
    /// Whether `struct tpacket_auxdata` comes with each frame.
    AuxData,
    SetOnly,
    libc::SOL_PACKET,
    libc::PACKET_AUXDATA,
    bool
);

/// All that arrives at an interface from now on.
#[derive(Debug)]
pub struct Capture {
    socket: OwnedFd,
}

impl Capture {
    /// Begins to listen at an interface of a namespace.
    pub fn start(namespace: &Namespace, interface: &str) -> Result<Self> {
        namespace.run_in(|| Self::open_here(interface))?
    }

    fn open_here(interface: &str) -> Result<Self> {
        let address = link_address(interface)?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)
            .context("cannot open a packet socket")?;
        // The kernel takes the first tag out of the frame, and tells it beside.
        setsockopt(&socket, AuxData, &true).context("cannot hear of tags")?;
        setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).context("no room for what arrives")?;
        bind(socket.as_raw_fd(), &address).with_context(|| format!("cannot listen at `{interface}`"))?;
        Ok(Self { socket })
    }

    /// The next frame that is wanted, with its VLAN tags; nothing once `patience` is over.
    pub fn next(&self, patience: Duration, mut wanted: impl FnMut(&[u8]) -> bool) -> Result<Option<Vec<u8>>> {
        let end = Instant::now() + patience;
        loop {
            while let Some(frame) = self.take()? {
                if wanted(&frame) {
                    return Ok(Some(frame));
                }
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let mut events = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut events, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error).context("cannot wait for a frame"),
            }
        }
    }

    /// A frame that has arrived.
    fn take(&self) -> Result<Option<Vec<u8>>> {
        let mut bytes = vec![0; LONGEST];
        let mut beside = nix::cmsg_space!([u8; size_of::<libc::tpacket_auxdata>()]);
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let fd = self.socket.as_raw_fd();
        let (length, tag) = match recvmsg::<LinkAddr>(fd, &mut slices, Some(&mut beside), MsgFlags::empty()) {
            Ok(message) => (message.bytes, message.cmsgs()?.find_map(|said| tag(&said))),
            Err(Errno::EAGAIN) => return Ok(None),
            Err(error) => return Err(error).context("cannot read a frame"),
        };
        bytes.truncate(length);
        if let Some(tag) = tag
            && bytes.len() >= TAG
        {
            bytes.splice(TAG..TAG, tag);
        }
        Ok(Some(bytes))
    }
}

/// The tag that was taken out of a frame, by what is told beside it: `struct tpacket_auxdata`.
fn tag(said: &ControlMessageOwned) -> Option<[u8; 4]> {
    const VALID: u32 = libc::TP_STATUS_VLAN_VALID | libc::TP_STATUS_VLAN_TPID_VALID;
    let ControlMessageOwned::Unknown(message) = said else { return None };
    let header = message.cmsg_header;
    if (header.cmsg_level, header.cmsg_type) != (libc::SOL_PACKET, libc::PACKET_AUXDATA) {
        return None;
    }
    let bytes = &message.data_bytes;
    let status = u32::from_ne_bytes(*bytes.first_chunk()?);
    let half = |at: usize| Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?).to_be_bytes());
    let ([id_0, id_1], [kind_0, kind_1]) = (half(16)?, half(18)?);
    (status & VALID == VALID).then_some([kind_0, kind_1, id_0, id_1])
}
