//! Tells the program which commit and which target it is built from, for `--version`.

use std::path::Path;
use std::process::Command;

fn main() {
    // Any of these lines switches off cargo's default, to run again after every change.
    println!("cargo:rerun-if-changed=build.rs");
    let target = std::env::var("TARGET").unwrap_or_default();
    println!("cargo:rustc-env=PCOPY_TARGET={target}");
    let commit = commit_of_checkout().or_else(commit_of_package);
    let commit = commit.unwrap_or_else(|| "unknown".to_owned());
    println!("cargo:rustc-env=PCOPY_COMMIT={commit}");
    #[cfg(feature = "mpi")]
    compile_shim();
}

/// Returns the commit if this is a checkout of pcopy, and not a directory in another repository.
fn commit_of_checkout() -> Option<String> {
    let here = std::env::var("CARGO_MANIFEST_DIR").ok()?;
    let top = git(&["rev-parse", "--show-toplevel"])?;
    if Path::new(&top).canonicalize().ok()? != Path::new(&here).canonicalize().ok()? {
        return None;
    }
    // The log of HEAD grows with each commit and checkout. The others are for a repository that
    // keeps none. A file that does not exist would make cargo run this every time.
    let branch = git(&["symbolic-ref", "-q", "HEAD"]);
    let files = ["HEAD", "logs/HEAD", "packed-refs"].map(str::to_owned);
    for file in files.into_iter().chain(branch) {
        if let Some(path) = git(&["rev-parse", "--git-path", &file])
            && Path::new(&path).exists()
        {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    git(&["log", "-1", "--format=%h (%cs)", "--abbrev=12"])
}

/// Returns the commit that `cargo package` has written down.
fn commit_of_package() -> Option<String> {
    let file = ".cargo_vcs_info.json";
    let text = std::fs::read_to_string(file).ok()?;
    println!("cargo:rerun-if-changed={file}");
    let (_, rest) = text.split_once("\"sha1\"")?;
    let commit: String = rest
        .chars()
        .skip_while(|c| !c.is_ascii_hexdigit())
        .take_while(char::is_ascii_hexdigit)
        .take(12)
        .collect();
    (!commit.is_empty()).then_some(commit)
}

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let text = text.trim();
    (output.status.success() && !text.is_empty()).then(|| text.to_owned())
}

/// Compiles the calls of MPI with the MPI that is installed. `MPICC` names another one's compiler.
#[cfg(feature = "mpi")]
fn compile_shim() {
    println!("cargo:rerun-if-changed=src/mpi/shim.c");
    println!("cargo:rerun-if-env-changed=MPICC");
    let mpicc = std::env::var("MPICC").unwrap_or_else(|_| "mpicc".to_owned());
    // OpenMPI and MPICH both print the command of the compiler behind it.
    let shown = Command::new(&mpicc).arg("-show").output();
    let shown = shown.unwrap_or_else(|error| {
        panic!("{mpicc}: {error}; the feature `mpi` needs OpenMPI or MPICH with its headers")
    });
    let command = String::from_utf8_lossy(&shown.stdout).into_owned();
    let mut build = cc::Build::new();
    for word in command.split_whitespace() {
        if let Some(path) = word.strip_prefix("-I") {
            build.include(path);
        } else if let Some(path) = word.strip_prefix("-L") {
            println!("cargo:rustc-link-search=native={path}");
        }
    }
    build.file("src/mpi/shim.c").compile("pcopy_mpi_shim");
    // After the shim, which needs them.
    for library in command
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("-l"))
    {
        println!("cargo:rustc-link-lib=dylib={library}");
    }
    for option in command
        .split_whitespace()
        .filter(|word| word.starts_with("-Wl,-rpath"))
    {
        println!("cargo:rustc-link-arg-bins={option}");
    }
}
