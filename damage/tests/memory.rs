//! Memory is counted for the whole process: this test has one of its own, and is its only one.

use std::panic::catch_unwind;

use damage::survives;

#[test]
fn what_a_decoder_asks_for_is_noticed() {
    let seed = b"seed".to_vec();
    let asks_for = |bytes: usize| {
        catch_unwind(|| {
            survives("decoder", &[b"seed".to_vec()], |input| {
                if input != seed {
                    drop(std::hint::black_box(Vec::<u8>::with_capacity(bytes)));
                }
                Ok(())
            });
        })
    };
    assert!(asks_for(64 << 20).is_ok());
    let fault = asks_for((1 << 32) - 1).expect_err("4 GiB");
    let fault = fault.downcast_ref::<String>().expect("a message");
    assert!(fault.contains("KiB of memory"), "{fault}");
}
