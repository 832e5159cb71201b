//! Configuration: a file, an environment and flags, one over the other.
//!
//! Three parts, separated by lines of `---`: TOML, `NAME=value` lines, `key=value` lines.

use longwire_broker::config::{Config, Sources, load};

use super::input::folder;

pub(super) fn run(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let mut parts = text.splitn(3, "\n---\n");
    let folder = folder();
    let path = folder.path().join("longwire.toml");
    std::fs::write(&path, parts.next().unwrap_or_default()).expect("a temporary file");
    let lines = |part: Option<&str>| -> Vec<String> {
        part.into_iter().flat_map(str::lines).map(str::to_owned).collect()
    };
    let variables = lines(parts.next());
    let environment = variables.iter().filter_map(|line| line.split_once('='));
    // Where the file is, the input does not say.
    let environment = environment.filter(|(name, _)| *name != "LONGWIRE_CONFIG");
    let environment = environment.map(|(name, value)| (name.into(), value.into()));
    let sources = Sources {
        file: Some(path.clone()),
        environment: environment.collect(),
        settings: lines(parts.next()),
        data_dir: None,
    };
    match load(&sources) {
        Ok(loaded) => reads_back(loaded.config, &path),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn reads_back(config: Config, path: &std::path::Path) {
    assert_eq!(config.check(), Ok(()), "what is loaded was checked");
    let text = config.to_toml().expect("all of it is text");
    std::fs::write(path, text).expect("a temporary file");
    let sources = Sources { file: Some(path.to_owned()), ..Sources::default() };
    let again = load(&sources).expect("what is printed can be read").config;
    assert_eq!(again, config);
}
