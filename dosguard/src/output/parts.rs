//! Very many records, made by all processors.

use std::{io, thread};

/// Items that are worth a thread.
const PART: usize = 8_192;
/// More threads than this are not started, however many processors there are.
const MOST_THREADS: usize = 8;

/// Does `work` on parts of `items`, several at once, and hands what comes of each to `take`, in their order.
pub fn in_parts<T: Sync, R: Send>(
    items: &[T],
    work: impl Fn(&[T]) -> R + Sync,
    mut take: impl FnMut(R) -> io::Result<()>,
) -> io::Result<()> {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
    let work = &work;
    for parts in items.chunks(PART * threads) {
        if parts.len() <= PART {
            take(work(parts))?;
            continue;
        }
        let done: Vec<_> = thread::scope(|scope| {
            // Where there may be no more threads, this one does it.
            let spawn = |part| (part, thread::Builder::new().spawn_scoped(scope, move || work(part)));
            let workers: Vec<_> = parts.chunks(PART).map(spawn).collect();
            let join = |(part, worker): (_, io::Result<thread::ScopedJoinHandle<'_, R>>)| match worker {
                Ok(worker) => worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                Err(_) => work(part),
            };
            workers.into_iter().map(join).collect()
        });
        done.into_iter().try_for_each(&mut take)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_in_their_order() {
        for count in [0, 1, PART, PART + 1, 10 * PART + 7] {
            let items: Vec<_> = (0..count).collect();
            let mut seen = Vec::new();
            in_parts(&items, <[usize]>::to_vec, |part| {
                seen.extend(part);
                Ok(())
            })
            .unwrap();
            assert_eq!(seen, items);
        }
    }
}
