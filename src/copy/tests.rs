//! Tests the conditions of a retry: suspect entries, resumed directories, temporary names.

use std::ffi::{CStr, CString, OsString};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use clap::Parser;

use super::dir::Made;
use super::*;
use crate::cli::Cli;
use crate::config::Config;
use crate::context::Identity;
use crate::fs::path::{Name, RelPath};
use crate::protocol::entry::{CHUNK_SIZE, Chunk, DirOrigin};
use crate::scoreboard::{Scoreboard, WriteTarget};
use crate::targets::Targets;

const CREATED: DirOrigin = DirOrigin {
    created: true,
    known_empty: true,
};
const RETRIED: DirOrigin = DirOrigin {
    created: true,
    known_empty: false,
};

/// A source and a destination directory, and a copier.
struct Setup {
    root: tempfile::TempDir,
    context: &'static Context,
    copier: Copier,
}

impl Setup {
    fn new(options: &[&str]) -> Self {
        let root = tempfile::tempdir().unwrap();
        let paths = ["src", "dst"].map(|name| root.path().join(name));
        for path in &paths {
            std::fs::create_dir(path).unwrap();
        }
        let args = [&["pcopy", "-q"], options].concat();
        let args = args.iter().map(OsString::from);
        let cli = Cli::try_parse_from(args.chain(paths.map(PathBuf::into_os_string))).unwrap();
        let config = Config::new(cli).unwrap();
        let identity = Identity::read();
        let context: &'static Context = Box::leak(Box::new(Context {
            targets: Targets::open(&config, identity.umask).unwrap(),
            scoreboard: Scoreboard::new(1, 1, 1).unwrap(),
            identity,
            config,
        }));
        Self {
            root,
            context,
            copier: Copier::new(context, 0),
        }
    }

    fn open(&self, origin: DirOrigin) -> DirPair {
        DirPair::open(self.context, 0, &RelPath::default(), origin).unwrap()
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    fn write(&self, path: &str, contents: impl AsRef<[u8]>) {
        std::fs::write(self.path(path), contents).unwrap();
    }

    fn inode(&self, path: &str) -> u64 {
        std::fs::metadata(self.path(path)).unwrap().ino()
    }

    fn copy(&mut self, origin: DirOrigin, name: &CStr, suspect: bool) -> EntryResult {
        let mut dir = self.open(origin);
        self.copier
            .copy_entry(&mut dir, entry(name, suspect))
            .unwrap()
    }

    /// Begins a file of two chunks.
    fn begin_chunked(&mut self) -> ChunkedFile {
        self.write("src/large", vec![b'x'; 32 << 20]);
        match self.copy(CREATED, c"large", false) {
            EntryResult::Chunked(file) => file,
            other => panic!("not copied in chunks: {other:?}"),
        }
    }
}

fn entry(name: &CStr, suspect: bool) -> Entry<'_> {
    Entry {
        kind: Kind::File,
        from: name,
        to: name,
        hard_links: HardLinks::Report,
        suspect,
        attempt: Attempt::First,
        stream: None,
    }
}

fn decision(result: EntryResult) -> Decision {
    match result {
        EntryResult::Done(decision) => decision,
        other => panic!("not done: {other:?}"),
    }
}

#[test]
fn a_suspect_entry_is_replaced_although_it_looks_the_same() {
    let mut setup = Setup::new(&[]);
    setup.write("src/a", "right");
    let copied = setup.copy(CREATED, c"a", false);
    assert_eq!(decision(copied), Decision::Create);
    let first = setup.inode("dst/a");
    let retried = setup.copy(RETRIED, c"a", false);
    assert_eq!(decision(retried), Decision::LeaveUnchanged);

    // The crashed worker's data did not reach the disk, say.
    let time = std::fs::metadata(setup.path("src/a"))
        .unwrap()
        .modified()
        .unwrap();
    setup.write("dst/a", "wrong");
    let copy = std::fs::File::open(setup.path("dst/a")).unwrap();
    copy.set_modified(time).unwrap();
    let retried = setup.copy(RETRIED, c"a", true);
    assert!(decision(retried).changes());
    assert_eq!(std::fs::read(setup.path("dst/a")).unwrap(), b"right");
    assert_ne!(setup.inode("dst/a"), first, "not replaced by a rename");
}

#[test]
fn a_suspect_entry_is_trusted_if_nothing_incomplete_can_have_its_name() {
    for overwrite in ["--overwrite=older", "--overwrite=never"] {
        let mut setup = Setup::new(&[overwrite]);
        setup.write("src/a", "a");
        setup.copy(CREATED, c"a", false);
        let retried = setup.copy(RETRIED, c"a", true);
        assert_eq!(decision(retried), Decision::LeaveUnchanged, "{overwrite}");
    }
}

#[test]
fn a_suspect_entry_that_is_the_source_itself_stays() {
    let mut setup = Setup::new(&["--no-preserve=links"]);
    setup.write("src/a", "a");
    std::fs::hard_link(setup.path("src/a"), setup.path("dst/a")).unwrap();
    let retried = setup.copy(DirOrigin::default(), c"a", true);
    assert_eq!(decision(retried), Decision::LeaveSame);
}

#[test]
fn a_retry_resumes_the_directories_of_this_run() {
    let setup = Setup::new(&[]);
    let make = |origin, name: &CStr| setup.open(origin).make_subdir(name, setup.context);
    assert_eq!(make(CREATED, c"a").unwrap(), Made::New);
    assert_eq!(make(RETRIED, c"a").unwrap(), Made::Resumed);
    assert_eq!(make(DirOrigin::default(), c"a").unwrap(), Made::Merged);
    // Nothing had that name when this run made the directory: another run is at work here too.
    assert_eq!(make(CREATED, c"a").unwrap(), Made::Merged);
}

#[test]
fn a_chunked_file_has_a_temporary_name_until_it_is_committed() {
    let mut setup = Setup::new(&["-j2"]);
    let file = setup.begin_chunked();
    // The worker resets it once the parent knows of the file.
    assert_eq!(setup.copier.slot.writing(), WriteTarget::Chunked(1));
    assert_eq!(file.temp, Some(temp_name(setup.context, 1)));
    assert!(!setup.path("dst/large").exists());

    let mut dir = setup.open(RETRIED);
    for chunk in file.chunks(CHUNK_SIZE) {
        setup
            .copier
            .copy_chunk(&mut dir, c"large", &file, chunk)
            .unwrap();
    }
    // The second time, a worker has renamed it and crashed.
    for _ in 0..2 {
        let copier = &mut setup.copier;
        let committed = copier.commit_chunked(&mut dir, c"large", c"large", &file, false);
        assert_eq!(decision(committed.unwrap()), Decision::Create);
    }
    assert_eq!(setup.copier.slot.writing(), WriteTarget::Chunked(1));
    let copied = std::fs::read(setup.path("dst/large")).unwrap();
    assert!(copied == vec![b'x'; 32 << 20]);
    assert_eq!(std::fs::read_dir(setup.path("dst")).unwrap().count(), 1);
}

#[test]
fn a_large_file_is_compared_before_anything_is_created() {
    let mut setup = Setup::new(&["-j2", "-c"]);
    let contents = vec![b'x'; 32 << 20];
    for path in ["src/large", "dst/large"] {
        setup.write(path, &contents);
    }
    let source = std::fs::File::options()
        .write(true)
        .open(setup.path("src/large"));
    let another_time = std::time::UNIX_EPOCH;
    source.unwrap().set_modified(another_time).unwrap();
    let begin = |setup: &mut Setup| match setup.copy(RETRIED, c"large", true) {
        EntryResult::Chunked(file) => file,
        other => panic!("not in chunks: {other:?}"),
    };
    let file = begin(&mut setup);
    assert!(file.is_comparison());
    let mut dir = setup.open(RETRIED);
    let compare = |setup: &mut Setup, dir: &mut DirPair, chunk| {
        setup.copier.copy_chunk(dir, c"large", &file, chunk)
    };
    for chunk in file.chunks(CHUNK_SIZE) {
        compare(&mut setup, &mut dir, chunk).unwrap();
    }
    let inode = setup.inode("dst/large");
    for expected in [Decision::UpdateMetadata, Decision::LeaveUnchanged] {
        let copier = &mut setup.copier;
        let committed = copier.commit_chunked(&mut dir, c"large", c"large", &file, false);
        assert_eq!(decision(committed.unwrap()), expected);
    }
    assert_eq!(setup.inode("dst/large"), inode);
    // The last byte differs.
    setup.write("dst/large", [&contents[1..], b"y"].concat());
    let chunks = file.chunks(CHUNK_SIZE);
    compare(&mut setup, &mut dir, chunks[0]).unwrap();
    let differs = compare(&mut setup, &mut dir, chunks[1]).unwrap_err();
    assert_eq!(differs.reason, Reason::Differs);
    let copier = &mut setup.copier;
    let committed = copier.commit_chunked(&mut dir, c"large", c"large", &file, true);
    match committed.unwrap() {
        EntryResult::Chunked(copy) => {
            assert!(!copy.is_comparison());
            assert_eq!(copy.decision, Decision::ReplaceContents);
        }
        other => panic!("not copied in chunks: {other:?}"),
    }
}

#[test]
fn a_retry_goes_on_with_the_partial_file_of_this_run() {
    let mut setup = Setup::new(&["-j1", "--partial"]);
    let first = setup.begin_chunked();
    let mut dir = setup.open(RETRIED);
    let chunks = first.chunks(CHUNK_SIZE);
    let copier = &mut setup.copier;
    copier
        .copy_chunk(&mut dir, c"large", &first, chunks[0])
        .unwrap();
    let second = match setup.copy(RETRIED, c"large", true) {
        EntryResult::Chunked(file) => file,
        other => panic!("not copied in chunks: {other:?}"),
    };
    assert_eq!(second.id, first.id);
    assert_ne!(second.temp, first.temp);
    let spared = |setup: &Setup| setup.copier.slot.counts().spared;
    for (chunk, whole) in chunks.into_iter().zip([chunks_length(&first), 0]) {
        let before = spared(&setup);
        let copier = &mut setup.copier;
        copier
            .copy_chunk(&mut dir, c"large", &second, chunk)
            .unwrap();
        assert_eq!(spared(&setup) - before, whole);
    }
    let copier = &mut setup.copier;
    let committed = copier.commit_chunked(&mut dir, c"large", c"large", &second, false);
    assert_eq!(decision(committed.unwrap()), Decision::Create);
    let copied = std::fs::read(setup.path("dst/large")).unwrap();
    assert!(copied == vec![b'x'; 32 << 20]);
    assert_eq!(std::fs::read_dir(setup.path("dst")).unwrap().count(), 1);
}

fn chunks_length(file: &ChunkedFile) -> u64 {
    ChunkedFile::chunk_length(&file.stat, CHUNK_SIZE)
}

#[test]
fn a_discarded_file_leaves_nothing() {
    let mut setup = Setup::new(&["-j2"]);
    let file = setup.begin_chunked();
    let mut dir = setup.open(RETRIED);
    let chunk = Chunk {
        offset: 0,
        length: 1 << 20,
    };
    let copier = &mut setup.copier;
    copier.copy_chunk(&mut dir, c"large", &file, chunk).unwrap();
    // A retry may discard it again.
    for _ in 0..2 {
        setup.copier.discard_chunked(&mut dir, &file).unwrap();
    }
    assert_eq!(std::fs::read_dir(setup.path("dst")).unwrap().count(), 0);
}

#[test]
fn a_temporary_file_may_be_gone_before_it_is_removed() {
    let mut setup = Setup::new(&[]);
    let name = temp_name(setup.context, 7);
    setup.write(
        &format!("dst/{}", name.as_bytes().escape_ascii()),
        "unfinished",
    );
    let dir = setup.open(RETRIED);
    for _ in 0..2 {
        setup.copier.remove_temp(&dir, &name).unwrap();
    }
    assert_eq!(std::fs::read_dir(setup.path("dst")).unwrap().count(), 0);
}

fn temp_name(context: &Context, number: u32) -> Name {
    let name: CString = temp::name(context, 0, number);
    Name::new(name.as_bytes())
}
