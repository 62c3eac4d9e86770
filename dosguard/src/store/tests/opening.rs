//! What is opened: a database of ours, an older or a newer one, another program's, or what is left of one.

use std::fs;

use rusqlite::Connection;

use super::*;

/// What is in the state folder, without the files beside databases.
fn files(paths: &Paths) -> Vec<String> {
    let entries = fs::read_dir(paths.state_dir()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| !name.ends_with("-wal") && !name.ends_with("-shm")).collect();
    names.sort();
    names
}

/// A database with 500 events and a saved ban, closed.
fn filled() -> (TempDir, Paths) {
    let (folder, paths) = folder();
    let mut store = open(&paths);
    let records: Vec<_> = (1..=500).map(|seq| event(seq, 0, "192.0.2.7")).collect();
    store.append(&records).unwrap();
    store.save(&Changes { bans: vec![saved_ban("192.0.2.7", false, "all")], ..Changes::default() }).unwrap();
    drop(store);
    (folder, paths)
}

/// It is set aside as it is, and a new one works.
fn assert_replaced(paths: &Paths) -> Store {
    let before = fs::read(paths.database()).unwrap();
    let Opened { mut store, set_aside } = Store::open(paths).unwrap();
    let aside = set_aside.expect("it should have been set aside");
    assert!(aside.display().to_string().contains("test.db.corrupt-20"), "{}", aside.display());
    assert_eq!(fs::read(aside).unwrap(), before, "what is set aside is what was there");
    assert_eq!(store.saved().unwrap(), Saved::default());
    let next = store.last_seq() + 1;
    assert_eq!(store.append(&[event(next, 0, "192.0.2.7")]).unwrap(), next);
    assert_eq!(seqs(&store, &EventFilter::default()), [next]);
    store
}

#[test]
fn what_is_no_database_is_set_aside() {
    for content in ["this is no database, and never was one".repeat(1_000).as_str(), "xx"] {
        let (_folder, paths) = folder();
        fs::create_dir_all(paths.state_dir()).unwrap();
        fs::write(paths.database(), content).unwrap();
        let error = Store::open_read_only(&paths).unwrap_err();
        assert!(error.is_damage() && error.to_string().contains("\nhint: "), "{error}");
        assert_replaced(&paths);
    }
}

#[test]
fn a_database_that_was_cut_is_set_aside() {
    let (_folder, paths) = filled();
    let length = paths.database().metadata().unwrap().len();
    fs::OpenOptions::new()
        .write(true)
        .open(paths.database())
        .unwrap()
        .set_len(length / 2 / 4096 * 4096)
        .unwrap();
    let error = Store::open_read_only(&paths).and_then(|store| store.unwrap().saved()).unwrap_err();
    assert!(error.is_damage(), "{error}");
    let store = assert_replaced(&paths);
    assert_eq!(store.last_seq(), 1, "it could not be read where it had come to");
}

#[test]
fn a_database_with_pages_written_over_is_set_aside_and_numbers_go_on_if_they_can_be_read() {
    // The page of saved bans, of which there is one; found by what is in it.
    let (_folder, paths) = filled();
    let mut bytes = fs::read(paths.database()).unwrap();
    let needle = b"\"length_ns\"";
    let at = bytes.windows(needle.len()).position(|window| window == needle).unwrap();
    let page = at / 4096 * 4096;
    bytes[page..page + 4096].fill(0xa5);
    fs::write(paths.database(), bytes).unwrap();
    let store = assert_replaced(&paths);
    assert_eq!(store.last_seq(), 501);
}

/// Numbers must go on: what cannot be counted on from is damage, and the events say how far they had come.
#[test]
fn a_last_number_that_there_cannot_be_is_damage() {
    for value in [&i64::MAX.to_string(), &(i64::MAX - 1).to_string(), "-1", "'many'", "NULL"] {
        let (_folder, paths) = filled();
        let connection = Connection::open(paths.database()).unwrap();
        let set = format!("UPDATE facts SET value = {value} WHERE name = 'last_seq'");
        let set = if value == "NULL" { "DELETE FROM facts".to_owned() } else { set };
        connection.execute_batch(&set).unwrap();
        drop(connection);
        let store = assert_replaced(&paths);
        assert_eq!(store.last_seq(), 501, "{value}");
    }
    // A high one that there can be.
    let (_folder, paths) = filled();
    let connection = Connection::open(paths.database()).unwrap();
    connection.execute_batch("UPDATE facts SET value = 4000000000000000000").unwrap();
    drop(connection);
    let Opened { mut store, set_aside } = Store::open(&paths).unwrap();
    assert_eq!(set_aside, None);
    assert_eq!(store.append(&[event(0, 0, "192.0.2.7")]).unwrap(), 4_000_000_000_000_000_001);
}

/// Whoever asks for those behind the last one that he was told would ask for ever.
#[test]
fn events_out_of_order_are_damage() {
    let (_folder, paths) = folder();
    let mut store = open(&paths);
    store.append(&[event(1, 0, "192.0.2.7"), event(2, 0, "192.0.2.7"), event(3, 0, "192.0.2.7")]).unwrap();
    drop(store);
    let connection = Connection::open(paths.database()).unwrap();
    let page: u16 = connection
        .query_row("SELECT rootpage FROM sqlite_schema WHERE name = 'events'", [], |row| row.get(0))
        .unwrap();
    drop(connection);
    // The places of the three rows stand behind the page's header, in the order of their numbers.
    let mut bytes = fs::read(paths.database()).unwrap();
    let places = usize::from(page - 1) * 4096 + 8;
    assert_eq!(bytes[places - 8..places - 3], [13, 0, 0, 0, 3], "a leaf with three rows");
    for byte in places..places + 2 {
        bytes.swap(byte, byte + 4);
    }
    fs::write(paths.database(), bytes).unwrap();
    let store = Store::open_read_only(&paths).unwrap().unwrap();
    for source in [None, Some("192.0.2.0/24".parse().unwrap()), Some("192.0.0.0/16".parse().unwrap())] {
        let filter = EventFilter { source, ..EventFilter::default() };
        if let Ok(events) = store.events(&filter, 0, usize::MAX) {
            assert!(events.is_sorted_by_key(|record| record.seq), "{filter:?}: {events:?}");
        }
    }
    assert!(store.events(&EventFilter::default(), 0, usize::MAX).unwrap_err().is_damage());
    assert!(store.check().unwrap_err().is_damage());
}

#[test]
fn no_more_than_a_few_are_kept_aside() {
    let (_folder, paths) = filled();
    // Of long ago, several of one second, and of a clock that was ahead.
    let aside = |stamp: &str| files::beside(&paths.database(), &format!(".corrupt-{stamp}"));
    for stamp in ["20250101T000000Z", "20250101T000000Z-2", "20250101T000000Z-10", "20990101T000000Z"] {
        fs::write(aside(stamp), stamp).unwrap();
    }
    let mut latest = None;
    for _ in 0..4 {
        fs::write(paths.database(), "not a database at all").unwrap();
        let Opened { set_aside, .. } = Store::open(&paths).unwrap();
        latest = set_aside;
        let found = files(&paths);
        assert_eq!(found.len(), 1 + 3, "{found:?}");
        assert!(aside("20250101T000000Z").exists(), "the first shows how it began");
    }
    assert!(latest.unwrap().exists() && aside("20990101T000000Z").exists());
}

#[test]
fn nobody_but_the_owner_may_open_it_and_what_was_wider_is_made_narrow() {
    let (_folder, paths) = filled();
    let mut store = open(&paths);
    store.append(&[event(501, 0, "192.0.2.7")]).unwrap();
    let all = ["", "-wal", "-shm"].map(|suffix| files::beside(&paths.database(), suffix));
    for path in &all {
        assert_eq!(mode(path), 0o600, "{}", path.display());
        fs::set_permissions(path, fs::Permissions::from_mode(0o640)).unwrap();
    }
    // A folder that is not for the group `dosguard` was chosen as it is.
    fs::set_permissions(paths.state_dir(), fs::Permissions::from_mode(0o755)).unwrap();
    open(&paths);
    assert_eq!(all.each_ref().map(|path| mode(path)), [0o600; 3]);
    assert_eq!(mode(paths.state_dir()), 0o755);
    assert_eq!(seqs(&store, &EventFilter::default()).len(), 501);
}

#[test]
fn an_older_database_is_not_damaged() {
    let (_folder, paths) = filled();
    Connection::open(paths.database()).unwrap().execute_batch("PRAGMA user_version = 0").unwrap();
    let error = Store::open_read_only(&paths).unwrap_err();
    assert!(matches!(error, StoreError::Older { found: 0, .. }) && !error.is_damage(), "{error}");
    assert!(error.to_string().contains("\nhint: the daemon brings it up to date"), "{error}");
}

#[test]
fn another_programs_database_is_set_aside() {
    let (_folder, paths) = folder();
    fs::create_dir_all(paths.state_dir()).unwrap();
    let other = Connection::open(paths.database()).unwrap();
    other.execute_batch("CREATE TABLE theirs (x); INSERT INTO theirs VALUES (1)").unwrap();
    drop(other);
    assert!(matches!(Store::open_read_only(&paths), Err(StoreError::Foreign { .. })));
    assert_replaced(&paths);
}

#[test]
fn a_newer_database_is_refused_and_left_as_it_is() {
    let (_folder, paths) = filled();
    let newer = Connection::open(paths.database()).unwrap();
    newer.execute_batch("PRAGMA user_version = 7; ALTER TABLE events ADD COLUMN more").unwrap();
    drop(newer);
    let before = fs::read(paths.database()).unwrap();
    for error in [Store::open(&paths).unwrap_err(), Store::open_read_only(&paths).unwrap_err()] {
        assert!(matches!(error, StoreError::Newer { found: 7, known: 1, .. }), "{error}");
        assert!(error.to_string().contains("\nhint: use the newer dosguard"), "{error}");
    }
    assert_eq!(files(&paths), ["test.db"]);
    assert_eq!(fs::read(paths.database()).unwrap(), before);
}

#[test]
fn older_databases_are_brought_up_to_date_and_keep_what_they_have() {
    // Before the first version: an empty file, and one that was interrupted while it was made.
    let (_folder, paths) = folder();
    fs::create_dir_all(paths.state_dir()).unwrap();
    Connection::open(paths.database())
        .unwrap()
        .execute_batch("PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL")
        .unwrap_or_default();
    open(&paths).append(&[event(1, 0, "192.0.2.7")]).unwrap();

    // A later version adds to the first.
    let mut store = open(&paths);
    let second = "ALTER TABLE events ADD COLUMN more DEFAULT 5; INSERT INTO facts VALUES ('second', 1)";
    let migrations = [schema::MIGRATIONS[0], second];
    schema::migrate(&mut store.connection, &migrations).unwrap();
    schema::migrate(&mut store.connection, &migrations).unwrap();
    let ask = |sql| store.connection.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!((ask("PRAGMA user_version"), ask("SELECT more FROM events")), (2, 5));
    assert_eq!(ask("PRAGMA auto_vacuum"), 2, "incremental");
    assert_eq!(schema::look(&store.connection).unwrap(), schema::Found::Version(2));

    // One that fails changes nothing.
    let third = [migrations[0], second, "CREATE TABLE more (x); CREATE TABLE events (x)"];
    schema::migrate(&mut store.connection, &third).unwrap_err();
    let ask = |sql| store.connection.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(ask("PRAGMA user_version"), 2);
    assert_eq!(ask("SELECT count(*) FROM sqlite_schema WHERE name = 'more'"), 0);
}

#[test]
fn a_state_folder_that_is_a_file_is_an_error_with_a_hint() {
    let (_folder, paths) = folder();
    fs::write(paths.state_dir(), "").unwrap();
    let error = Store::open(&paths).unwrap_err();
    assert!(!error.is_damage() && error.to_string().contains("\nhint: "), "{error}");
}

#[test]
fn a_path_may_have_any_character() {
    assert_eq!(files::immutable_uri(Path::new("/a b/%?#ä.db")), "file:/a%20b/%25%3F%23%C3%A4.db?immutable=1");
}
