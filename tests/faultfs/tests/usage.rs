//! That the program starts. Also what makes cargo build it for the tests of pcopy, which run it.

use std::process::Command;

#[test]
fn it_says_how_it_is_used() {
    let output = Command::new(env!("CARGO_BIN_EXE_faultfs")).arg("--help").output().unwrap();
    let help = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    assert!(help.contains("--delay-ms") && help.contains("--fault"), "{help}");
}
