//! A driver beside a device that says anything. The fuzz target `device_answers` does the same for longer.

#[path = "common/hostile.rs"]
mod hostile;

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_device_says_the_driver_survives_it(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        hostile::survive(&bytes);
    }

    /// Mostly the truth, so that it gets further.
    #[test]
    fn a_device_that_lies_now_and_then(
        mode in any::<u8>(),
        bytes in prop::collection::vec(prop_oneof![12 => Just(15u8), 1 => any::<u8>()], 0..1500),
    ) {
        let mut script = vec![mode];
        script.extend(bytes);
        hostile::survive(&script);
    }
}
