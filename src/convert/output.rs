//! A file that gets its name when it is complete, and not before.

use crate::{Error, Result};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A file under a temporary name beside its own; deleted unless it is committed.
pub(super) struct Output {
    path: PathBuf,
    temporary: PathBuf,
    file: File,
    force: bool,
}

impl Output {
    /// Makes the temporary file. Without `force`, a file that is there already is an error.
    pub(super) fn new(path: &Path, force: bool) -> Result<Output> {
        refuse_existing(path, force)?;
        let Some(name) = path.file_name() else {
            return Err(Error::argument(format!("{}: not the name of a file", path.display())));
        };
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let mut temporary = std::ffi::OsString::from(".");
        temporary.push(name);
        temporary.push(format!(".{}-{}.tmp", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
        let temporary = path.with_file_name(temporary);
        let file = File::options().write(true).create_new(true).open(&temporary);
        let file = file.map_err(|error| Error::io(temporary.display(), &error))?;
        Ok(Output { path: path.to_owned(), temporary, file, force })
    }

    /// What to write to.
    pub(super) fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Where it is as long as it is not committed.
    pub(super) fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// Waits until all of it is on the disk; returns how many bytes that are.
    pub(super) fn sync(&mut self) -> Result<u64> {
        let len = self.file.sync_all().and_then(|()| self.file.metadata()).map(|about| about.len());
        len.map_err(|error| Error::io(self.temporary.display(), &error))
    }

    /// Gives the file its name.
    pub(super) fn commit(self) -> Result<()> {
        refuse_existing(&self.path, self.force)?;
        std::fs::rename(&self.temporary, &self.path).map_err(|error| Error::io(self.path.display(), &error))?;
        // The name is on the disk when its folder is. Not every system can do this to a folder: then it does without.
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let _ = File::open(folder).and_then(|folder| folder.sync_all());
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // After a commit it is not there any more.
        let _ = std::fs::remove_file(&self.temporary);
    }
}

fn refuse_existing(path: &Path, force: bool) -> Result<()> {
    match path.symlink_metadata() {
        Ok(about) if about.is_dir() => Err(Error::argument(format!("{}: a folder, not a file", path.display()))),
        Ok(_) if !force => Err(Error::argument(format!("{}: the file is there already (--force)", path.display()))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_file_has_its_name_only_when_it_is_complete() {
        let folder = std::env::temp_dir().join(format!("edgellm-output-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("a.gguf");
        let names = || std::fs::read_dir(&folder).unwrap().count();
        let mut output = Output::new(&path, false).unwrap();
        output.file().write_all(b"new").unwrap();
        assert!(!path.exists() && names() == 1);
        drop(output);
        assert_eq!(names(), 0);

        let mut output = Output::new(&path, false).unwrap();
        output.file().write_all(b"new").unwrap();
        assert_eq!(output.sync().unwrap(), 3);
        output.commit().unwrap();
        assert_eq!((std::fs::read(&path).unwrap(), names()), (b"new".to_vec(), 1));

        assert!(Output::new(&path, false).err().unwrap().to_string().contains("--force"));
        Output::new(&path, true).unwrap().commit().unwrap();
        assert_eq!((std::fs::read(&path).unwrap(), names()), (vec![], 1));
        assert!(Output::new(&folder, true).is_err());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
