use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;
use tempfile::TempDir;

use super::*;

/// A directory with a private copy.
struct Lab {
    dir: TempDir,
    area: Arc<Area>,
    overlay: Overlay,
}

const TOP: &str = "";

impl Lab {
    fn new() -> Self {
        Self::with(Room::STANDARD)
    }

    fn with(room: Room) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("w")).unwrap();
        let area = Arc::new(Area::new(dir.path().join("data/private/1"), "owner".into(), room));
        let overlay = Overlay::open(&area, 0, &mount(&dir.path().join("w"))).unwrap();
        Self { dir, area, overlay }
    }

    fn host(&self, path: &str) -> PathBuf {
        self.dir.path().join("w").join(path)
    }

    fn outside(&self, path: &str, content: &str) {
        fs::create_dir_all(self.host(path).parent().unwrap()).unwrap();
        fs::write(self.host(path), content).unwrap();
    }

    fn open(&self, path: &str, how: How) -> io::Result<Opened> {
        self.overlay.open_at(Path::new(TOP), path, how).map(|(_, opened)| opened)
    }

    fn write(&self, path: &str, content: &str) {
        match self.open(path, How { create: true, truncate: true, write: true, ..How::default() }).unwrap() {
            Opened::Upper(mut file, _) => file.write_all(content.as_bytes()).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn read(&self, path: &str) -> io::Result<String> {
        let how = How { follow: true, read: true, ..How::default() };
        match self.open(path, how)? {
            Opened::Upper(file, _) | Opened::Lower(file) => io::read_to_string(file),
            Opened::Directory(_) => Err(Errno::ISDIR.into()),
        }
    }

    fn names(&self, path: &str) -> Vec<String> {
        self.overlay.list(Path::new(path)).unwrap().into_keys().map(|n| n.into_string().unwrap()).collect()
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.overlay.remove_file_at(Path::new(TOP), path)
    }

    fn remove_dir(&self, path: &str) -> io::Result<()> {
        self.overlay.remove_dir_at(Path::new(TOP), path)
    }

    /// What changed, and what of it is in conflict.
    fn changes(&self) -> Vec<(String, Action, bool)> {
        let open = self.overlay.changes().unwrap().into_iter().filter(|c| !c.done);
        open.map(|c| (c.path.display().to_string(), c.action, c.conflict.is_some())).collect()
    }

    fn plan(&self, wanted: &[&str]) -> Result<Plan, Error> {
        let overlay = Overlay::open(&self.area, 0, &mount(&self.dir.path().join("w"))).unwrap();
        Plan::new(&self.area, vec![overlay], &wanted.iter().map(ToString::to_string).collect::<Vec<_>>())
    }
}

fn mount(host: &Path) -> Mount {
    Mount { host: host.to_owned(), guest: "w".into(), writable: true, private: true }
}

fn change(path: &str, action: Action, conflict: bool) -> (String, Action, bool) {
    (path.to_owned(), action, conflict)
}

#[track_caller]
fn fails<T: std::fmt::Debug>(result: io::Result<T>, errno: Errno) {
    assert_eq!(result.unwrap_err().raw_os_error(), Some(errno.raw_os_error()));
}

#[test]
fn what_a_cut_off_copy_leaves_means_nothing() {
    let lab = Lab::new();
    lab.outside("f", "old");
    // The copy, and the note of what the original was, but not the change.
    lab.area.ready().unwrap();
    fs::write(lab.area.dir().join("tmp/0"), "half").unwrap();
    let stale = Base::look(&lab.overlay.lower, "f".as_ref()).unwrap().unwrap();
    lab.overlay.remember(Path::new("f"), &stale).unwrap();
    assert_eq!((lab.read("f").unwrap().as_str(), lab.changes()), ("old", vec![]));
    // The original changes before the process comes to it again: that is what it began from.
    lab.outside("f", "newer");
    let again = Lab { area: Arc::new(Area::new(lab.area.dir().into(), "owner".into(), Room::STANDARD)), ..lab };
    let overlay = Overlay::open(&again.area, 0, &mount(&again.host(""))).unwrap();
    let again = Lab { overlay, ..again };
    again.write("f", "mine");
    assert!(!again.area.dir().join("tmp/0").exists() || fs::read(again.area.dir().join("tmp/0")).unwrap() != b"half");
    assert_eq!(again.changes(), [change("f", Action::Modified, false)]);
    again.plan(&[]).unwrap().carry_out().unwrap();
    assert_eq!(fs::read_to_string(again.host("f")).unwrap(), "mine");
}

#[test]
fn a_directory_that_was_made_anew_shows_nothing_of_the_old_one() {
    let lab = Lab::new();
    lab.outside("d/a", "a");
    lab.outside("d/b", "b");
    fails(lab.remove_dir("d"), Errno::NOTEMPTY);
    lab.remove("d/a").unwrap();
    lab.remove("d/b").unwrap();
    lab.remove_dir("d").unwrap();
    fails(lab.read("d/a"), Errno::NOENT);
    assert_eq!(lab.names(TOP), Vec::<String>::new());
    lab.overlay.make_dir_at(Path::new(TOP), "d").unwrap();
    lab.write("d/c", "c");
    lab.outside("d/later", "x");
    assert_eq!(lab.names("d"), ["c"]);
    let expected = [
        change("d/a", Action::Deleted, false),
        change("d/b", Action::Deleted, false),
        change("d/c", Action::Added, false),
    ];
    assert_eq!(lab.changes(), expected);
    lab.plan(&[]).unwrap().carry_out().unwrap();
    assert_eq!(lab.names("d"), ["c", "later"], "applied, the original shows");
}

#[test]
fn a_directory_is_not_removed_with_what_others_made_in_it() {
    let lab = Lab::new();
    lab.outside("d/a", "a");
    lab.remove("d/a").unwrap();
    lab.remove_dir("d").unwrap();
    lab.outside("d/stranger", "x");
    assert_eq!(lab.changes(), [change("d", Action::Deleted, true), change("d/a", Action::Deleted, false)]);
    lab.plan(&["w/d/a"]).unwrap().carry_out().unwrap();
    assert!(!lab.host("d/a").exists() && lab.host("d/stranger").exists());
    fs::remove_file(lab.host("d/stranger")).unwrap();
    lab.plan(&[]).unwrap().carry_out().unwrap();
    assert!(!lab.host("d").exists() && !lab.area.dir().exists());
}

#[test]
fn a_file_becomes_a_directory_and_the_other_way_round() {
    let lab = Lab::new();
    lab.outside("f", "f");
    lab.outside("d/x", "x");
    lab.remove("f").unwrap();
    lab.overlay.make_dir_at(Path::new(TOP), "f").unwrap();
    lab.write("f/y", "y");
    lab.remove("d/x").unwrap();
    lab.remove_dir("d").unwrap();
    lab.write("d", "d");
    lab.plan(&[]).unwrap().carry_out().unwrap();
    assert_eq!(fs::read_to_string(lab.host("f/y")).unwrap(), "y");
    assert_eq!(fs::read_to_string(lab.host("d")).unwrap(), "d");
}

#[test]
fn a_chosen_file_brings_its_new_directories_and_leaves_the_rest() {
    let lab = Lab::new();
    lab.overlay.make_dir_at(Path::new(TOP), "new").unwrap();
    lab.write("new/a", "a");
    lab.write("new/b", "b");
    lab.write("c", "c");
    assert!(matches!(lab.plan(&["w/new/a", "w/nothing"]), Err(Error::Unchanged(what)) if what == "w/nothing"));
    lab.plan(&["./w/new/a"]).unwrap().carry_out().unwrap();
    assert!(lab.host("new/a").exists() && !lab.host("new/b").exists() && !lab.host("c").exists());
    assert_eq!(lab.changes(), [change("c", Action::Added, false), change("new/b", Action::Added, false)]);
    // The process goes on: what was applied is its base now.
    lab.write("new/a", "a2");
    assert_eq!(lab.changes()[1], change("new/a", Action::Modified, false));
    lab.plan(&[]).unwrap().carry_out().unwrap();
    assert_eq!(fs::read_to_string(lab.host("new/a")).unwrap(), "a2");
}

#[test]
fn a_link_that_leads_out_is_neither_followed_nor_applied() {
    let lab = Lab::new();
    fs::write(lab.dir.path().join("secret"), "secret").unwrap();
    for (target, name) in [("../secret", "up"), ("/etc/passwd", "absolute"), ("up", "over")] {
        symlink(target, lab.host(name)).unwrap();
        fails(lab.read(name), Errno::PERM);
    }
    let make = |target: &str, name: &str| lab.overlay.make_link_at(target, Path::new(TOP), name);
    fails(make("/etc/passwd", "mine"), Errno::PERM);
    make("../secret", "mine").unwrap();
    fails(lab.read("mine"), Errno::PERM);
    assert_eq!(lab.changes(), [change("mine", Action::Added, true)]);
    fails(lab.read("../secret"), Errno::PERM);
    make("b", "a").unwrap();
    make("a", "b").unwrap();
    fails(lab.read("a"), Errno::LOOP);
}

#[test]
fn what_is_in_the_data_directory_is_not_applied() {
    let lab = Lab::new();
    let overlay = || Overlay::open(&lab.area, 0, &Mount { guest: "all".into(), ..mount(lab.dir.path()) }).unwrap();
    lab.area.ready().unwrap();
    let how = How { create: true, write: true, ..How::default() };
    drop(overlay().open_at(Path::new(TOP), "data/aok.toml", how).unwrap());
    let plan = Plan::new(&lab.area, vec![overlay()], &[]).unwrap();
    assert!(plan.steps()[0].change().conflict.as_ref().unwrap().contains("data directory"));
}

#[test]
fn a_directory_with_something_of_the_original_is_not_renamed() {
    let lab = Lab::new();
    lab.outside("d/a", "a");
    let rename = |from: &str, to: &str| lab.overlay.rename_at(Path::new(TOP), from, Path::new(TOP), to);
    fails(rename("d", "e"), Errno::XDEV);
    lab.overlay.make_dir_at(Path::new(TOP), "new").unwrap();
    lab.write("new/x", "x");
    assert_eq!(rename("new", "d/new").unwrap(), ("new".into(), "d/new".into()));
    assert_eq!(lab.read("d/new/x").unwrap(), "x");
    rename("d/a", "d/new/x").unwrap();
    assert_eq!((lab.read("d/new/x").unwrap().as_str(), lab.names("d")), ("a", vec!["new".to_owned()]));
    assert_eq!(fs::read_to_string(lab.host("d/a")).unwrap(), "a");
}

#[test]
fn room_is_bounded_and_an_open_file_holds_its_own() {
    let lab = Lab::with(Room { bytes: 100, files: 3 });
    lab.outside("big", &"x".repeat(101));
    lab.outside("small", &"x".repeat(60));
    let write = How { write: true, ..How::default() };
    fails(lab.open("big", write), Errno::NOSPC);
    assert!(lab.area.refusal().unwrap().contains("--direct") && lab.area.refusal().is_none());
    // Nothing of it is left, and what is cut to nothing needs no room.
    assert_eq!(lab.changes(), []);
    drop(lab.open("big", How { truncate: true, ..write }).unwrap());
    let Opened::Upper(file, held) = lab.open("small", write).unwrap() else { panic!("a copy") };
    let file = Arc::new(file);
    let held = held.by(&file);
    fails(held.area().charge(41, 0), Errno::NOSPC);
    lab.remove("small").unwrap();
    // Its name is gone, and its bytes are not while it is open.
    fails(lab.area.charge(41, 0), Errno::NOSPC);
    drop((held, file));
    lab.area.charge(100, 0).unwrap();
    lab.area.give_back(100, 0);
    lab.overlay.make_dir_at(Path::new(TOP), "d").unwrap();
    fails(lab.overlay.make_dir_at(Path::new(TOP), "e"), Errno::NOSPC);
    // Counted anew, it is the same.
    lab.area.recount();
    fails(lab.overlay.make_dir_at(Path::new(TOP), "e"), Errno::NOSPC);
}

#[test]
fn paths_are_bounded() {
    let lab = Lab::new();
    let mut path = String::new();
    for _ in 0..128 {
        path.push_str("d/");
        lab.overlay.make_dir_at(Path::new(TOP), &path).unwrap();
    }
    fails(lab.overlay.make_dir_at(Path::new(TOP), &format!("{path}d/e")), Errno::NAMETOOLONG);
    fails(lab.read(&"d/".repeat(2_000)), Errno::NAMETOOLONG);
    fails(lab.read(&"long".repeat(100)), Errno::NAMETOOLONG);
    fails(lab.read("nul\0"), Errno::INVAL);
    fails(lab.read(TOP), Errno::NOENT);
}

#[test]
fn a_name_that_is_swapped_for_a_link_leads_nowhere() {
    let lab = Lab::new();
    let secret = lab.dir.path().join("secret");
    fs::create_dir(&secret).unwrap();
    fs::write(secret.join("f"), "secret").unwrap();
    lab.outside("d/f", "fine");
    symlink(&secret, lab.host("link")).unwrap();
    let (over, host, aside, link) = (AtomicBool::new(false), lab.host("d"), lab.host("aside"), lab.host("link"));
    let (mut fine, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                fs::rename(&host, &aside).unwrap();
                fs::rename(&link, &host).unwrap();
                fs::rename(&host, &link).unwrap();
                fs::rename(&aside, &host).unwrap();
            }
        });
        for n in 0..3_000 {
            match lab.read("d/f") {
                Ok(text) => {
                    assert_eq!(text, "fine");
                    fine += 1;
                }
                Err(_) => refused += 1,
            }
            // Writing is to the copy, whatever the name is at that moment.
            if n % 100 == 0 {
                let _ = lab.open("d/g", How { create: true, write: true, follow: true, ..How::default() });
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    assert!(fine > 0 && refused > 0, "{fine} read, {refused} refused: nothing was raced");
    assert_eq!(fs::read_dir(&secret).unwrap().count(), 1);
    assert!(!lab.host("d/g").exists());
}
