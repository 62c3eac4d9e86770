//! Reading a map many entries at a time: a tenth of the time that a walk entry by entry takes.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use aya_obj::generated::{bpf_attr__bindgen_ty_3 as BatchAttr, bpf_cmd};
use bytemuck::{Pod, Zeroable};

/// How many entries are asked for at once, where there are many; the memory for them is new each time.
const BATCH: usize = 4_096;
/// The same at first, and where each has many values.
const LEAST_BATCH: usize = 256;
/// What there is room for grows as fast.
const GROWTH: usize = 4;
/// A bucket with more entries than this is no hash any more.
const MAX_BATCH: usize = 1 << 20;

/// The kernel's own code for what a map cannot do.
const ENOTSUPP: i32 = 524;

/// All entries of a hash map or an array, by `BPF_MAP_LOOKUP_BATCH` (Linux 5.6, commits 057996380a42 and c60f2d28615a). Each
/// bucket is read at once: what is removed or added meanwhile may be there or not, and all else is there once. None if the
/// kernel cannot do it.
///
/// `map` must be a hash map, an LRU one, or an array, of exactly these keys and values.
pub(super) fn entries<K: Pod, V: Pod>(map: &OwnedFd) -> io::Result<Option<Vec<(K, V)>>> {
    batches(map, bpf_cmd::BPF_MAP_LOOKUP_BATCH)
}

/// The same of a hash map, and takes them out of it.
pub(super) fn take<K: Pod, V: Pod>(map: &OwnedFd) -> io::Result<Option<Vec<(K, V)>>> {
    batches(map, bpf_cmd::BPF_MAP_LOOKUP_AND_DELETE_BATCH)
}

/// Shows all entries of an array, batch by batch; false if the kernel cannot do it.
///
/// `map` must be an array of exactly these values.
pub(super) fn each<V: Pod>(map: &OwnedFd, mut see: impl FnMut(&u32, &V)) -> io::Result<bool> {
    walk::<u32, V>(map, bpf_cmd::BPF_MAP_LOOKUP_BATCH, 1, |keys, values| {
        keys.iter().zip(values).for_each(|(key, value)| see(key, value));
    })
}

/// Shows all entries of a hash map with a value for each CPU; false if the kernel cannot do it. On a machine with many CPUs
/// the values of all entries together would be large.
///
/// `map` must be a hash map, also an LRU one, of exactly these keys and values for each of `cpus` possible CPUs.
pub(super) fn each_per_cpu<K: Pod, V: Pod>(
    map: &OwnedFd,
    cpus: usize,
    mut see: impl FnMut(&K, &[V]),
) -> io::Result<bool> {
    const {
        assert!(size_of::<V>().is_multiple_of(8), "the kernel rounds a value's size up to words");
    }
    walk::<K, V>(map, bpf_cmd::BPF_MAP_LOOKUP_BATCH, cpus.max(1), |keys, values| {
        for (key, values) in keys.iter().zip(values.chunks_exact(cpus.max(1))) {
            see(key, values);
        }
    })
}

fn batches<K: Pod, V: Pod>(map: &OwnedFd, command: bpf_cmd) -> io::Result<Option<Vec<(K, V)>>> {
    let mut found = Vec::new();
    let is_known = walk::<K, V>(map, command, 1, |keys, values| {
        found.extend(keys.iter().copied().zip(values.iter().copied()));
    })?;
    Ok(is_known.then_some(found))
}

/// Shows the entries batch by batch; each has so many values.
fn walk<K: Pod, V: Pod>(
    map: &OwnedFd,
    command: bpf_cmd,
    values_each: usize,
    mut see: impl FnMut(&[K], &[V]),
) -> io::Result<bool> {
    let most = (BATCH / values_each).max(LEAST_BATCH);
    let mut room = LEAST_BATCH;
    let (mut keys, mut values) = buffers::<K, V>(room, values_each);
    // The kernel's place in the map: the number of a bucket, or the last key of an array.
    let (mut place, mut next) = (0_u32, 0_u32);
    let (mut is_first, mut batches) = (true, 0);
    loop {
        // The part of `bpf_attr` that this command looks at; the kernel takes what is missing for zeroes.
        let mut batch = BatchAttr {
            in_batch: if is_first { 0 } else { (&raw const place) as u64 },
            out_batch: (&raw mut next) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: u32::try_from(room).unwrap_or(u32::MAX),
            map_fd: u32::try_from(map.as_raw_fd()).map_err(io::Error::other)?,
            elem_flags: 0,
            flags: 0,
        };
        #[expect(unsafe_code, reason = "aya has no batches")]
        // SAFETY: `keys` and `values` have room for `count` entries of the map's sizes and as many values for each as it
        // has, which the caller answers for; any bytes are keys and values (`Pod`). `place` and `next` are the four bytes that both kinds of map take and give. All of
        // them and `batch` live beyond the call.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut batch, size_of::<BatchAttr>()) };
        let error = if result < 0 { io::Error::last_os_error().raw_os_error() } else { None };
        let count = batch.count as usize;
        match error {
            None | Some(libc::ENOENT) => {
                let count = count.min(room);
                see(&keys[..count], &values[..count * values_each]);
                if error.is_some() {
                    return Ok(true);
                }
                place = next;
                is_first = false;
                // Not for the sake of the call that only says that there are no more.
                batches += 1;
                if batches > 1 && room < most {
                    room = most.min(room * GROWTH);
                    (keys, values) = buffers(room, values_each);
                }
            }
            // One bucket alone has more entries.
            Some(libc::ENOSPC) if room < MAX_BATCH => {
                room *= GROWTH;
                (keys, values) = buffers(room, values_each);
            }
            Some(libc::EINTR) => {}
            Some(libc::EINVAL | libc::EOPNOTSUPP | ENOTSUPP) if is_first => return Ok(false),
            Some(error) => return Err(io::Error::from_raw_os_error(error)),
        }
    }
}

fn buffers<K: Pod, V: Pod>(room: usize, values_each: usize) -> (Vec<K>, Vec<V>) {
    (vec![Zeroable::zeroed(); room], vec![Zeroable::zeroed(); room * values_each])
}
