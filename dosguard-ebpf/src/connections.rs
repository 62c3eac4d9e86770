//! The daemon's own programs: one counts connections while the kernel walks over the sockets, another marks who has one, and the third
//! bans a source that holds too many. They work on the instance's maps and have some of their own; none sees a packet.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod program {
    #![expect(unsafe_code, reason = "sockets and maps are reached through the kernel's pointers")]
    #![expect(clippy::needless_pass_by_value, reason = "an entry point is handed its context")]

    use aya_ebpf::Global;
    use aya_ebpf::bindings::xdp_action::XDP_PASS;
    use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
    use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
    use aya_ebpf::macros::{map, xdp};
    use aya_ebpf::maps::{Array, HashMap};
    use aya_ebpf::programs::XdpContext;
    use dosguard_common::abi;
    use dosguard_common::address::Address;
    use dosguard_common::config::Config;
    use dosguard_common::connection::{
        Held, Look, Order, PROBES, Slot, Socket, SocketState, SocketTables, Waiting, count,
    };
    use dosguard_common::engine;
    use dosguard_common::frame::Frame as _;
    use dosguard_common::key::SourceKey;
    use dosguard_common::rule::RuleIndex;
    use dosguard_common::tables::Tables as _;
    use dosguard_ebpf::context::ContextFrame;
    use dosguard_ebpf::maps;
    use dosguard_ebpf::tables::KernelTables;

    /// What each source holds.
    #[map]
    static HELD: Array<Slot> = Array::with_max_entries(abi::HELD.entries, BPF_F_MMAPABLE);

    /// What those hold that found no slot. Userspace takes it all out after each look.
    #[map]
    static MORE_HELD: HashMap<SourceKey, Held> =
        HashMap::with_max_entries(abi::MORE_HELD.entries, BPF_F_NO_PREALLOC);

    /// Where the slots of sources are. Set at load to a number that nobody knows.
    #[unsafe(no_mangle)]
    static SEED: Global<u64> = Global::new(0);

    /// Connections that will be added to it.
    #[map]
    static WAITING: Array<Waiting> = Array::with_max_entries(abi::WAITING.entries, 0);

    /// Port to the last look that found it served.
    #[map]
    static SERVED: Array<u32> = Array::with_max_entries(abi::SERVED.entries, 0);

    /// The host's own addresses.
    #[map]
    static OWN: HashMap<Address, u8> = HashMap::with_max_entries(abi::OWN.entries, BPF_F_NO_PREALLOC);

    /// The look that is under way.
    #[map]
    static LOOK: Array<Look> = Array::with_max_entries(abi::LOOK.entries, 0);

    /// Where the running kernel keeps what of a socket (`struct sock_common`), in bytes. Set at load, from its BTF.
    #[unsafe(no_mangle)]
    static STATE: Global<u32> = Global::new(0);
    #[unsafe(no_mangle)]
    static FAMILY: Global<u32> = Global::new(0);
    #[unsafe(no_mangle)]
    static PORT: Global<u32> = Global::new(0);
    #[unsafe(no_mangle)]
    static LOCAL_V4: Global<u32> = Global::new(0);
    #[unsafe(no_mangle)]
    static REMOTE_V4: Global<u32> = Global::new(0);
    #[unsafe(no_mangle)]
    static LOCAL_V6: Global<u32> = Global::new(0);
    #[unsafe(no_mangle)]
    static REMOTE_V6: Global<u32> = Global::new(0);

    const AF_INET: u16 = 2;
    const AF_INET6: u16 = 10;

    /// What the kernel hands to the program for each socket (`struct bpf_iter__tcp`, Linux 5.9, commit 52d87d5f6418).
    #[repr(C)]
    pub struct TcpIteration {
        _meta: u64,
        socket: *const u8,
        _uid: u32,
    }

    /// Entry point of the walk over the sockets that counts connections.
    #[unsafe(no_mangle)]
    #[unsafe(link_section = "iter/tcp")]
    pub extern "C" fn dosguard_count(iteration: *mut TcpIteration) -> i32 {
        let socket = socket(iteration);
        let Some(look) = look() else { return 0 };
        if socket.is_null() {
            // The end of the walk.
            settle(look);
            return 0;
        }
        // SAFETY: the kernel holds the socket while the program looks at it.
        if let Some(socket) = unsafe { read(socket) } {
            count(&socket, look, &mut Sockets);
        }
        0
    }

    /// Entry point of the walk that marks the source of each socket that is no listener: of connections, of those that are being
    /// made, and of those that the host has closed and remembers.
    #[unsafe(no_mangle)]
    #[unsafe(link_section = "iter/tcp")]
    pub extern "C" fn dosguard_peers(iteration: *mut TcpIteration) -> i32 {
        let (socket, config) = (socket(iteration), maps::CONFIG.get(0));
        // SAFETY: the kernel holds the socket while the program looks at it.
        let socket = if socket.is_null() { None } else { unsafe { read(socket) } };
        if let (Some(socket), Some(config)) = (socket, config)
            && socket.state != SocketState::Listening
        {
            KernelTables::<false>.mark_proven(&config.mask().source(socket.remote));
        }
        0
    }

    /// The socket that the walk has come to; null at its end.
    #[inline(always)]
    fn socket(iteration: *mut TcpIteration) -> *const u8 {
        // SAFETY: the kernel hands the program a context that lives as long as it runs.
        unsafe { (&raw const (*iteration).socket).read_volatile() }
    }

    /// Reads a field of a socket.
    ///
    /// # Safety
    ///
    /// `socket` must be a socket's and the field be there, which the verifier checks again.
    #[inline(always)]
    unsafe fn field<T: Copy>(socket: *const u8, offset: u32) -> T {
        // SAFETY: by the caller's word.
        unsafe { socket.add(offset as usize).cast::<T>().read_volatile() }
    }

    /// # Safety
    ///
    /// As of [`field`].
    #[inline(always)]
    unsafe fn words(socket: *const u8, offset: u32) -> [u32; 4] {
        // SAFETY: by the caller's word.
        unsafe { [0, 4, 8, 12].map(|word| field(socket, offset + word)) }
    }

    /// None for a socket of another family.
    ///
    /// # Safety
    ///
    /// As of [`field`].
    #[inline(always)]
    unsafe fn read(socket: *const u8) -> Option<Socket> {
        // SAFETY: by the caller's word.
        unsafe {
            let state = SocketState::from_kernel(field(socket, STATE.load()));
            let (local, remote) = match field::<u16>(socket, FAMILY.load()) {
                AF_INET => {
                    let [local, remote] =
                        [&LOCAL_V4, &REMOTE_V4].map(|offset| field::<u32>(socket, offset.load()));
                    (Address::from_ipv4(local.to_ne_bytes()), Address::from_ipv4(remote.to_ne_bytes()))
                }
                AF_INET6 => {
                    let [local, remote] = [&LOCAL_V6, &REMOTE_V6].map(|offset| words(socket, offset.load()));
                    (Address::of_socket(local), Address::of_socket(remote))
                }
                _ => return None,
            };
            Some(Socket { state, port: field(socket, PORT.load()), local, remote })
        }
    }

    /// The look that is under way.
    #[inline(always)]
    fn look() -> Option<&'static mut Look> {
        // SAFETY: the pointer is to the map's own value; one walk at a time is made, by one thread.
        LOOK.get_ptr_mut(0).map(|look| unsafe { &mut *look })
    }

    struct Sockets;

    impl SocketTables for Sockets {
        #[inline(always)]
        fn served(&self, port: u16) -> u32 {
            SERVED.get(u32::from(port)).copied().unwrap_or(0)
        }

        #[inline(always)]
        fn serve(&mut self, port: u16, number: u32) {
            if let Some(served) = SERVED.get_ptr_mut(u32::from(port)) {
                // SAFETY: as in `look`.
                unsafe { *served = number };
            }
        }

        #[inline(always)]
        fn is_own(&self, address: &Address) -> bool {
            OWN.get_ptr(address).is_some()
        }

        #[inline(always)]
        fn is_allowed(&self, address: &Address) -> bool {
            maps::CONFIG.get(0).is_some_and(Config::has_allow_list)
                && KernelTables::<false>.is_allowed(address)
        }

        #[inline(always)]
        fn rule_of(&mut self, port: u16) -> RuleIndex {
            KernelTables::<false>.rule_of(port)
        }

        #[inline(always)]
        fn source(&self, address: &Address) -> Address {
            match maps::CONFIG.get(0) {
                Some(config) => config.mask().source(*address),
                None => *address,
            }
        }

        #[inline(always)]
        fn hold(&mut self, look: &mut Look, key: &SourceKey, held: Held) {
            let Some(waiting) = WAITING.get_ptr_mut(look.waiting) else { return };
            // SAFETY: as in `look`.
            unsafe { *waiting = Waiting { key: *key, place: Slot::place(key, SEED.load()), held } };
            look.waiting += 1;
            if look.waiting >= abi::WAITING.entries {
                settle(look);
            }
        }
    }

    /// Adds up what waits.
    #[inline(never)]
    fn settle(look: &mut Look) {
        // Nothing comes of it but that the slots are on their way. Those of stale places too: to leave them out is not faster.
        for at in 0..abi::WAITING.entries {
            let slot = WAITING.get(at).and_then(|waiting| HELD.get_ptr(waiting.place % abi::HELD.entries));
            if let Some(slot) = slot {
                // SAFETY: the pointer is to one of the map's values, of 32 bytes. Volatile, for nobody needs what is read.
                unsafe { slot.cast::<u32>().read_volatile() };
            }
        }
        for at in 0..abi::WAITING.entries {
            let Some(waiting) = WAITING.get(at) else { return };
            if at >= look.waiting {
                break;
            }
            if !add(waiting, look) {
                look.missed = look.missed.saturating_add(1);
            }
        }
        look.waiting = 0;
    }

    /// Adds to what a source holds; false if there is no room.
    #[inline(always)]
    fn add(waiting: &Waiting, look: &mut Look) -> bool {
        let Waiting { key, place, held } = waiting;
        let mut probe = 0;
        while probe < PROBES {
            let Some(slot) = HELD.get_ptr_mut(place.wrapping_add(probe) % abi::HELD.entries) else {
                return false;
            };
            // SAFETY: as in `look`; userspace reads between the walks.
            if unsafe { (*slot).add(key, look.number, *held) } {
                return true;
            }
            probe += 1;
        }
        look.more = look.more.saturating_add(1);
        match MORE_HELD.get_ptr_mut(key) {
            Some(there) => {
                // SAFETY: as in `look`; userspace takes entries out after the walk.
                unsafe { (*there).add(*held) };
                true
            }
            None => MORE_HELD.insert(key, held, 0).is_ok(),
        }
    }

    /// Entry point of a ban, by a test-run: what stands in place of a packet is an [`Order`].
    #[xdp]
    pub fn dosguard_ban(ctx: XdpContext) -> u32 {
        if let Some(order) = ContextFrame::new(&ctx).bytes(0).map(Order::from_bytes) {
            // SAFETY: the helper takes no arguments and only reads a clock (Linux 5.8, commit 71d19214776e).
            let now_ns = unsafe { bpf_ktime_get_boot_ns() };
            engine::judge_connections(
                &mut KernelTables::<false>,
                order.source,
                order.rule(),
                order.count,
                now_ns,
            );
        }
        XDP_PASS
    }

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }

    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
