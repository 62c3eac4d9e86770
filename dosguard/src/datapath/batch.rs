//! Reading a hash map many entries at a time: a tenth of the time that a walk entry by entry takes.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use aya_obj::generated::{bpf_attr, bpf_attr__bindgen_ty_3, bpf_cmd};
use bytemuck::{Pod, Zeroable};

/// How many entries are asked for at once.
const BATCH: usize = 4_096;
/// A bucket with more entries than this is no hash any more.
const MAX_BATCH: usize = 1 << 20;

/// All entries of a hash map, by `BPF_MAP_LOOKUP_BATCH` (Linux 5.6, commit 057996380a42). Each bucket is read at once: what
/// is removed or added meanwhile may be there or not, and all else is there once. None if the kernel cannot do it.
///
/// `map` must be a hash map, or an LRU one, of exactly these keys and values.
pub(super) fn entries<K: Pod, V: Pod>(map: &OwnedFd) -> io::Result<Option<Vec<(K, V)>>> {
    let mut found = Vec::new();
    let (mut keys, mut values) = buffers::<K, V>(BATCH);
    // The kernel's place in the map: the number of a bucket.
    let (mut place, mut next) = (0_u32, 0_u32);
    let mut is_first = true;
    loop {
        let room = keys.len();
        let batch = bpf_attr__bindgen_ty_3 {
            in_batch: if is_first { 0 } else { (&raw const place) as u64 },
            out_batch: (&raw mut next) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: u32::try_from(room).unwrap_or(u32::MAX),
            map_fd: u32::try_from(map.as_raw_fd()).map_err(io::Error::other)?,
            elem_flags: 0,
            flags: 0,
        };
        let mut attr = bpf_attr { batch };
        #[expect(unsafe_code, reason = "aya has no batches")]
        // SAFETY: `keys` and `values` have room for `count` entries of the map's sizes, which the caller answers for; any
        // bytes are keys and values (`Pod`). `place` and `next` are the four bytes that a hash map takes and gives. All of
        // them and `attr` live beyond the call.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, bpf_cmd::BPF_MAP_LOOKUP_BATCH, &raw mut attr, size_of::<bpf_attr>())
        };
        let error = if result < 0 { io::Error::last_os_error().raw_os_error() } else { None };
        #[expect(unsafe_code, reason = "a field of a union")]
        // SAFETY: it was written as `batch`, of which the kernel changes the count.
        let count = unsafe { attr.batch.count } as usize;
        match error {
            None | Some(libc::ENOENT) => {
                let count = count.min(room);
                found.extend(keys[..count].iter().copied().zip(values[..count].iter().copied()));
                if error.is_some() {
                    return Ok(Some(found));
                }
                place = next;
                is_first = false;
            }
            // One bucket alone has more entries.
            Some(libc::ENOSPC) if room < MAX_BATCH => (keys, values) = buffers(room * 4),
            Some(libc::EINTR) => {}
            Some(libc::EINVAL | libc::EOPNOTSUPP | 524) if is_first => return Ok(None),
            Some(error) => return Err(io::Error::from_raw_os_error(error)),
        }
    }
}

fn buffers<K: Pod, V: Pod>(room: usize) -> (Vec<K>, Vec<V>) {
    (vec![Zeroable::zeroed(); room], vec![Zeroable::zeroed(); room])
}
