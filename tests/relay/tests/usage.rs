//! Tests that the program starts. Because of this file cargo builds it for the tests of pcopy.

use std::process::Command;

#[test]
fn help_lists_the_options() {
    let output = Command::new(env!("CARGO_BIN_EXE_relay"))
        .arg("--help")
        .output()
        .unwrap();
    let help = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    assert!(
        help.contains("--fault") && help.contains("--script"),
        "{help}"
    );
}
