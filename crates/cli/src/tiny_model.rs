//! The model that this binary brings along: two megabytes, so that what the README shows answers wherever it is tried.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The files of `models/tiny`; the one that makes a folder a model comes last.
const FILES: [(&str, &[u8]); 5] = [
    ("model.safetensors", include_bytes!("../../../models/tiny/model.safetensors")),
    ("tokenizer.json", include_bytes!("../../../models/tiny/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../../../models/tiny/tokenizer_config.json")),
    ("generation_config.json", include_bytes!("../../../models/tiny/generation_config.json")),
    ("config.json", include_bytes!("../../../models/tiny/config.json")),
];

/// A models folder below Covey's own that holds it, written when it is not there yet; `None` where nothing can be written.
pub(crate) fn folder() -> Option<PathBuf> {
    let folder = covey_node::home::root().join("builtin-models");
    match write(&folder.join("tiny")) {
        Ok(()) => Some(folder),
        Err(error) => {
            errln!("note: the model `tiny` could not be written to `{}`: {error}", folder.display());
            None
        }
    }
}

fn write(model: &Path) -> io::Result<()> {
    if FILES.iter().all(|(name, body)| fs::read(model.join(name)).is_ok_and(|there| there == *body)) {
        return Ok(());
    }
    fs::create_dir_all(model)?;
    for (name, body) in FILES {
        // Others may read it meanwhile, and write it too.
        let draft = model.join(format!("{name}.new-{}", std::process::id()));
        fs::write(&draft, body)?;
        fs::rename(&draft, model.join(name))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_is_written_once_and_mended() {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("tiny");
        write(&model).unwrap();
        assert_eq!(covey_inference::discover(dir.path()).len(), 1);
        fs::write(model.join("model.safetensors"), b"cut").unwrap();
        write(&model).unwrap();
        assert_eq!(fs::read(model.join("model.safetensors")).unwrap(), FILES[0].1);
    }
}
