//! Any frames through the kernel program, for some seconds, and that a program which is wrong is found out. Needs root.

use std::collections::BTreeSet;

use dosguard::datapath::SHIPPED;
use dosguard_tests::fuzz::setup::Kind;
use dosguard_tests::fuzz::{Plan, ROUND, kind_of, run};

/// The program with every `r0 = 1`, which is how it ends with `XDP_DROP`, made `r0 = 0`, `XDP_ABORTED`.
fn aborting() -> &'static [u8] {
    let mut object = SHIPPED.to_vec();
    let mut changed = 0;
    // Instructions have eight bytes, and sections begin at a multiple of that.
    for instruction in object.chunks_exact_mut(8) {
        if matches!(instruction, [0xb4 | 0xb7, 0, 0, 0, 1, 0, 0, 0]) {
            instruction[4] = 0;
            changed += 1;
        }
    }
    assert!(changed > 0, "no instruction returns `XDP_DROP`");
    // An object is read in place, at an address that suits its headers.
    object.leak()
}

#[test]
fn any_frames_have_the_action_of_their_reason() {
    let plan = Plan { seed: 7, frames: 5 * ROUND, time: None, from: None, object: SHIPPED };
    let sum = run(&plan, |_| {}, || Ok(())).unwrap();
    assert_eq!(sum.frames, 5 * ROUND);
    assert_eq!(sum.kinds.keys().copied().collect::<BTreeSet<_>>(), BTreeSet::from(Kind::ALL));
}

#[test]
fn a_program_that_aborts_is_found_out() {
    let round = (0..10).find(|round| kind_of(*round) == Kind::Plain).unwrap();
    let plan = Plan { seed: 7, frames: 0, time: None, from: Some(round * ROUND), object: aborting() };
    let error = format!("{:#}", run(&plan, |_| {}, || Ok(())).unwrap_err());
    assert!(error.contains("XDP action 0"), "{error}");
    assert!(error.contains("--seed 7 --from "), "{error}");
}
