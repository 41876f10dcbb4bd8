//! The VFS: SQLite's default one but for how databases and write-ahead logs are read and written.
//!
//! A file of SQLite's is a piece of memory whose size the VFS says. Here it is a [`File`] and behind it the file of the VFS
//! below. Everything that is not a read or a write of these two kinds of files goes straight through. The table of methods is
//! of version 2, which has no memory mapping: what is mapped is read without asking anybody.
#![expect(unsafe_code, reason = "SQLite calls a VFS through tables of C functions")]

use std::{
    ffi::{CStr, OsStr, c_int, c_void},
    os::unix::ffi::OsStrExt as _,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    ptr, slice,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicPtr, Ordering},
    },
};

use libsqlite3_sys as ffi;

use crate::{
    slices::Slices,
    state::{Database, Disk, Log, Shared},
};

const NAME: &CStr = c"covey-pages";

/// The VFS below; not null once [`vfs`] has registered this one.
static BELOW: AtomicPtr<ffi::sqlite3_vfs> = AtomicPtr::new(ptr::null_mut());

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};

#[derive(Debug)]
enum State {
    Database(Database),
    Log(Log),
}

/// What SQLite holds of an open file; the file of the VFS below is behind it.
#[repr(C)]
struct File {
    /// First, because this is all that SQLite knows of it.
    head: ffi::sqlite3_file,
    /// From [`Box::into_raw`] in [`open`], taken back by [`close`].
    state: *mut Opened,
}

/// What is known of an open file.
#[derive(Debug)]
struct Opened {
    state: State,
    slices: Slices,
}

/// The name of the VFS, for [`sqlx::sqlite::SqliteConnectOptions::vfs`]; registers it the first time.
pub fn vfs() -> Result<&'static str, sqlx::Error> {
    static REGISTERED: OnceLock<c_int> = OnceLock::new();
    match REGISTERED.get_or_init(register) {
        &ffi::SQLITE_OK => Ok("covey-pages"),
        code => Err(sqlx::Error::Protocol(format!("SQLite takes no VFS: code {code}"))),
    }
}

fn register() -> c_int {
    // SAFETY: SQLite may be initialized by anybody at any time. The default VFS lives as long as the process, and so do the copy
    // that is leaked here and the name. The copy keeps `pAppData` and all functions of the default one, which read nothing of
    // the VFS that they are given but that and `mxPathname`; only files of it are opened by a function of this module.
    unsafe {
        let code = ffi::sqlite3_initialize();
        if code != ffi::SQLITE_OK {
            return code;
        }
        let below = ffi::sqlite3_vfs_find(ptr::null());
        if below.is_null() {
            return ffi::SQLITE_ERROR;
        }
        BELOW.store(below, Ordering::Release);
        let mut own = *below;
        own.szOsFile += size_of::<File>() as c_int;
        own.zName = NAME.as_ptr();
        own.pNext = ptr::null_mut();
        own.xOpen = Some(open);
        ffi::sqlite3_vfs_register(Box::into_raw(Box::new(own)), 0)
    }
}

/// The file of the VFS below.
///
/// # Safety
///
/// `file` is memory of the size that the VFS says.
unsafe fn inner(file: *mut ffi::sqlite3_file) -> *mut ffi::sqlite3_file {
    // SAFETY: the memory is larger than `File` by what the VFS below needs, and `File` is as large as a multiple of 8 bytes, so
    // what lies behind it is aligned as the whole is.
    unsafe { file.cast::<File>().add(1).cast() }
}

/// An open file of the VFS below, for as long as a call of SQLite lasts.
struct Inner(*mut ffi::sqlite3_file);

impl Inner {
    fn methods(&self) -> &ffi::sqlite3_io_methods {
        // SAFETY: whoever makes an `Inner` has an open file, whose methods live as long as it is open.
        unsafe { &*(*self.0).pMethods }
    }
}

impl Disk for Inner {
    fn read(&self, bytes: &mut [u8], at: i64) -> c_int {
        let Some(read) = self.methods().xRead else { return ffi::SQLITE_IOERR_READ };
        // SAFETY: the file is open, and the buffer is as long as is said; pages and frames are shorter than `int` reaches.
        unsafe { read(self.0, bytes.as_mut_ptr().cast(), bytes.len() as c_int, at) }
    }

    fn write(&self, bytes: &[u8], at: i64) -> c_int {
        let Some(write) = self.methods().xWrite else { return ffi::SQLITE_IOERR_WRITE };
        // SAFETY: as for reading.
        unsafe { write(self.0, bytes.as_ptr().cast(), bytes.len() as c_int, at) }
    }
}

/// A panic must not pass through C; it is an error of the file.
fn guarded(done: impl FnOnce() -> c_int) -> c_int {
    catch_unwind(AssertUnwindSafe(done)).unwrap_or(ffi::SQLITE_IOERR)
}

unsafe extern "C" fn open(
    _: *mut ffi::sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    flags_out: *mut c_int,
) -> c_int {
    let below = BELOW.load(Ordering::Acquire);
    // SAFETY: this function is in a VFS that was registered after `BELOW` was set. SQLite gives memory of the size that this VFS
    // says, and a name that it keeps while the file is open. Other kinds of files are the lower VFS's alone, at the begin of
    // that memory. `pMethods` stays null until all is made, so that SQLite closes nothing that is not open.
    unsafe {
        let Some(open) = (*below).xOpen else { return ffi::SQLITE_CANTOPEN };
        let is_database = flags & ffi::SQLITE_OPEN_MAIN_DB != 0;
        if name.is_null() || !(is_database || flags & ffi::SQLITE_OPEN_WAL != 0) {
            return open(below, name, file, flags, flags_out);
        }
        let path = PathBuf::from(OsStr::from_bytes(CStr::from_ptr(name).to_bytes()));
        let state = if is_database {
            Some(State::Database(Database::new(Shared::new(path.clone()))))
        } else {
            shared_of(ffi::sqlite3_database_file_object(name)).map(|shared| State::Log(Log::new(shared)))
        };
        let Some(state) = state else { return ffi::SQLITE_CANTOPEN };
        let inner = inner(file);
        (*file).pMethods = ptr::null();
        (*inner).pMethods = ptr::null();
        let code = open(below, name, inner, flags, flags_out);
        if code != ffi::SQLITE_OK {
            if let Some(close) = (*inner).pMethods.as_ref().and_then(|methods| methods.xClose) {
                close(inner);
            }
            return code;
        }
        // Another connection of the process may have it: with one descriptor too few, its locks would go when that one ends.
        let Ok(slices) = Slices::of(&path) else {
            if let Some(close) = (*inner).pMethods.as_ref().and_then(|methods| methods.xClose) {
                close(inner);
            }
            return ffi::SQLITE_CANTOPEN;
        };
        let opened = Opened { state, slices };
        (*file.cast::<File>()).state = Box::into_raw(Box::new(opened));
        (*file).pMethods = &METHODS;
        code
    }
}

/// What a log has in common with its database.
///
/// # Safety
///
/// `database` is null or a file that SQLite has open, and nobody reads or writes it at the moment.
unsafe fn shared_of(database: *mut ffi::sqlite3_file) -> Option<Arc<Shared>> {
    // SAFETY: a file with this module's methods is a `File` with its state. One connection, which opens the log, uses it.
    unsafe {
        if database.is_null() || !ptr::eq((*database).pMethods, &METHODS) {
            return None;
        }
        match &mut (*(*database.cast::<File>()).state).state {
            State::Database(state) => {
                state.settle(&Inner(inner(database)));
                Some(state.shared.clone())
            }
            State::Log(_) => None,
        }
    }
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: SQLite closes an open file once. `pMethods` is null afterwards, so it does not use it again.
    unsafe {
        let _ = flushed(file);
        let inner = inner(file);
        let code = (*(*inner).pMethods).xClose.map_or(ffi::SQLITE_OK, |close| close(inner));
        drop(Box::from_raw((*file.cast::<File>()).state));
        (*file).pMethods = ptr::null();
        code
    }
}

unsafe extern "C" fn read(file: *mut ffi::sqlite3_file, bytes: *mut c_void, length: c_int, at: i64) -> c_int {
    // SAFETY: the file is open, its connection does one thing at a time, and the buffer is SQLite's and as long as it says.
    let (state, disk, bytes) = unsafe {
        let bytes = slice::from_raw_parts_mut(bytes.cast::<u8>(), length as usize);
        (&mut (*(*file.cast::<File>()).state).state, Inner(inner(file)), bytes)
    };
    guarded(|| match state {
        State::Database(database) => database.read(&disk, bytes, at),
        State::Log(log) => log.read(&disk, bytes, at),
    })
}

unsafe extern "C" fn write(file: *mut ffi::sqlite3_file, bytes: *const c_void, length: c_int, at: i64) -> c_int {
    // SAFETY: as for reading; SQLite does not change the buffer during the call.
    let (opened, disk, bytes) = unsafe {
        let bytes = slice::from_raw_parts(bytes.cast::<u8>(), length as usize);
        (&mut *(*file.cast::<File>()).state, Inner(inner(file)), bytes)
    };
    guarded(|| {
        let code = match &mut opened.state {
            State::Database(database) => database.write(&disk, bytes, at),
            State::Log(log) => log.write(&disk, bytes, at),
        };
        if code != ffi::SQLITE_OK {
            return code;
        }
        match opened.slices.wrote(bytes.len()) {
            Ok(()) => code,
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => ffi::SQLITE_FULL,
            Err(_) => ffi::SQLITE_IOERR_FSYNC,
        }
    })
}

/// Writes what of a log was not written yet.
///
/// # Safety
///
/// `file` is open.
unsafe fn flushed(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: the file is open and its connection does one thing at a time.
    let (state, disk) = unsafe { (&mut (*(*file.cast::<File>()).state).state, Inner(inner(file))) };
    guarded(|| match state {
        State::Database(_) => ffi::SQLITE_OK,
        State::Log(log) => log.flush(&disk),
    })
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    // SAFETY: the file is open.
    unsafe {
        let code = flushed(file);
        if code != ffi::SQLITE_OK {
            return code;
        }
        let inner = inner(file);
        (*(*inner).pMethods).xSync.map_or(ffi::SQLITE_IOERR_FSYNC, |sync| sync(inner, flags))
    }
}

unsafe extern "C" fn shm_lock(file: *mut ffi::sqlite3_file, offset: c_int, count: c_int, flags: c_int) -> c_int {
    // SAFETY: the file is open, and it is a database: only those are asked for locks of a log.
    unsafe {
        if let State::Database(database) = &(*(*file.cast::<File>()).state).state {
            database.shared.turns.fetch_add(1, Ordering::Relaxed);
        }
        let inner = inner(file);
        (*(*inner).pMethods).xShmLock.map_or(ffi::SQLITE_IOERR_SHMLOCK, |lock| lock(inner, offset, count, flags))
    }
}

unsafe extern "C" fn device_characteristics(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: the file is open.
    let known = unsafe {
        let inner = inner(file);
        (*(*inner).pMethods).xDeviceCharacteristics.map_or(0, |ask| ask(inner))
    };
    // Without this SQLite reads whole pages, and only these have sums.
    known & !ffi::SQLITE_IOCAP_SUBPAGE_READ
}

macro_rules! through {
    ($($name:ident = $method:ident($($arg:ident: $type:ty),*) $(-> $code:ty, $missing:expr)?;)*) => { $(
        unsafe extern "C" fn $name(file: *mut ffi::sqlite3_file, $($arg: $type),*) $(-> $code)? {
            // SAFETY: the file is open, so the one below is; what is passed on is as SQLite gave it.
            unsafe {
                let inner = inner(file);
                match (*(*inner).pMethods).$method {
                    Some(method) => method(inner, $($arg),*),
                    None => { $($missing)? }
                }
            }
        }
    )* };
}

through! {
    truncate = xTruncate(size: i64) -> c_int, ffi::SQLITE_IOERR_TRUNCATE;
    file_size = xFileSize(size: *mut i64) -> c_int, ffi::SQLITE_IOERR_FSTAT;
    lock = xLock(level: c_int) -> c_int, ffi::SQLITE_IOERR_LOCK;
    unlock = xUnlock(level: c_int) -> c_int, ffi::SQLITE_IOERR_UNLOCK;
    check_reserved_lock = xCheckReservedLock(reserved: *mut c_int) -> c_int, ffi::SQLITE_IOERR_CHECKRESERVEDLOCK;
    file_control = xFileControl(operation: c_int, argument: *mut c_void) -> c_int, ffi::SQLITE_NOTFOUND;
    sector_size = xSectorSize() -> c_int, 0;
    shm_map = xShmMap(region: c_int, size: c_int, extend: c_int, address: *mut *mut c_void) -> c_int, ffi::SQLITE_IOERR_SHMMAP;
    shm_barrier = xShmBarrier();
    shm_unmap = xShmUnmap(delete: c_int) -> c_int, ffi::SQLITE_OK;
}
