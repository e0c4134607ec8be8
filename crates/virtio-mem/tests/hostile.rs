//! A driver beside a device that says anything. The fuzz target `device_answers` does the same for longer.

#[path = "common/hostile.rs"]
mod hostile;

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_device_says_the_driver_survives_it(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        hostile::survive(&bytes);
    }

    /// Mostly acknowledgements, so that it gets further.
    #[test]
    fn a_device_that_lies_now_and_then(bytes in prop::collection::vec(prop_oneof![8 => 8u8..100, 1 => any::<u8>()], 0..400)) {
        hostile::survive(&bytes);
    }
}
