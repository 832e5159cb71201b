//! Defaults, file, environment, flags: one over the other.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::{Config, InvalidConfig};

/// The beginning of every environment variable the broker reads.
const ENV_PREFIX: &str = "LONGWIRE_";
/// Names the configuration file, where no flag does.
const ENV_CONFIG: &str = "LONGWIRE_CONFIG";
/// Variables that are no settings: the file, and what `longwire` reads.
const ENV_OTHERS: [&str; 3] = [ENV_CONFIG, "LONGWIRE_BROKER", "LONGWIRE_LOG"];

/// Where a configuration comes from, in rising precedence.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The TOML file; where `None`, the variable `LONGWIRE_CONFIG` can name one.
    pub file: Option<PathBuf>,
    /// The environment. Only names that begin with `LONGWIRE_` are looked at, and no empty values.
    pub environment: Vec<(OsString, OsString)>,
    /// The store's folder, which need not be text.
    pub data_dir: Option<PathBuf>,
    /// `key=value` pairs, such as `storage.segment_bytes=64MiB`.
    pub settings: Vec<String>,
}

impl Sources {
    /// Unit and compose files can pass a variable on only as empty where it is not set.
    fn variables(&self) -> impl Iterator<Item = &(OsString, OsString)> {
        self.environment.iter().filter(|(_, value)| !value.is_empty())
    }
}

/// A valid configuration and what was odd on the way to it.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The effective configuration.
    pub config: Config,
    /// Variables that look like settings but are none; to be told.
    pub warnings: Vec<String>,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file is not TOML, has an unknown key, or a value of the wrong kind.
    #[error("the configuration file {} is not valid: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Line, column and reason.
        message: String,
    },
    /// Variables or flags set keys to what they cannot be, or that there are not, or values are out
    /// of their range.
    #[error(transparent)]
    Invalid(#[from] InvalidConfig),
}

/// Puts the sources over the defaults and checks the outcome.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigError> {
    let mut config = Config::default();
    if let Some(path) = config_file(sources) {
        config = read_file(&path)?;
    }
    let keys = keys(&config);
    let (mut wrong, mut warnings) = (Vec::new(), Vec::new());
    for (name, value) in sources.variables() {
        let Some(name) = name.to_str().filter(|name| name.starts_with(ENV_PREFIX)) else {
            continue;
        };
        if ENV_OTHERS.contains(&name) {
            continue;
        }
        match (keys.iter().find(|key| variable(key) == *name), value.to_str()) {
            (Some(key), Some(value)) => {
                let outcome = set(&mut config, key, value);
                wrong.extend(outcome.err().map(|message| format!("{name}={value}: {message}")));
            }
            (Some(_), None) => wrong.push(format!("{name}: the value is not valid UTF-8")),
            (None, _) => {
                warnings.push(format!("the variable {name} names no setting and is ignored"));
            }
        }
    }
    let mut data_dir = sources.data_dir.as_ref();
    for setting in &sources.settings {
        let outcome = match setting.split_once('=') {
            Some((key, value)) if keys.iter().any(|known| known == key.trim()) => {
                data_dir = data_dir.filter(|_| key.trim() != "data_dir");
                set(&mut config, key.trim(), value)
            }
            Some((key, _)) => Err(format!("there is no setting {:?}", key.trim())),
            None => Err("write it as key=value".to_owned()),
        };
        wrong.extend(outcome.err().map(|message| format!("--set {setting}: {message}")));
    }
    // Last, since `set` needs all of it to be text.
    if let Some(dir) = data_dir {
        config.data_dir.clone_from(dir);
    }
    if let Err(InvalidConfig(found)) = config.check() {
        wrong.extend(found);
    }
    if wrong.is_empty() {
        Ok(Loaded { config, warnings })
    } else {
        Err(InvalidConfig(wrong).into())
    }
}

impl Config {
    /// The configuration as a TOML file that reads back as the same; an error where the folder's name
    /// is not text, which a TOML file cannot say.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }
}

fn config_file(sources: &Sources) -> Option<PathBuf> {
    let variable = || sources.variables().find(|(name, _)| *name == *ENV_CONFIG);
    sources.file.clone().or_else(|| variable().map(|(_, path)| PathBuf::from(path)))
}

fn read_file(path: &Path) -> Result<Config, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    // Read straight from the text, so that errors carry line and column.
    toml::from_str(&text)
        .map_err(|error| ConfigError::File { path: path.to_owned(), message: error.to_string() })
}

/// The variable that sets a key: `storage.segment_bytes` is `LONGWIRE_STORAGE_SEGMENT_BYTES`.
fn variable(key: &str) -> String {
    format!("{ENV_PREFIX}{}", key.replace('.', "_").to_uppercase())
}

/// Every key there is, as `section.name`.
fn keys(config: &Config) -> Vec<String> {
    let mut keys = Vec::new();
    for (name, value) in to_table(config) {
        match value {
            Value::Table(section) => keys.extend(section.keys().map(|key| format!("{name}.{key}"))),
            _ => keys.push(name),
        }
    }
    keys
}

fn to_table(config: &Config) -> Table {
    Table::try_from(config).unwrap_or_default()
}

/// Sets one key, which must be one of [`keys`], from text; changes nothing where that cannot be.
fn set(config: &mut Config, key: &str, text: &str) -> Result<(), String> {
    let mut root = to_table(config);
    let (table, name) = match key.split_once('.') {
        Some((section, name)) => (root.get_mut(section).and_then(Value::as_table_mut), name),
        None => (Some(&mut root), key),
    };
    if let Some(slot) = table.and_then(|table| table.get_mut(name)) {
        *slot = match slot {
            Value::Integer(_) => {
                Value::Integer(text.trim().parse().map_err(|_| format!("{key} is a whole number"))?)
            }
            Value::Boolean(_) => {
                Value::Boolean(text.trim().parse().map_err(|_| format!("{key} is true or false"))?)
            }
            _ => Value::String(text.to_owned()),
        };
    }
    *config = root.try_into().map_err(|error: toml::de::Error| error.message().to_owned())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::ffi::OsStringExt;
    use std::time::Duration;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    fn environment(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
        pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
    }

    #[test]
    fn flags_override_the_environment_which_overrides_the_file_which_overrides_defaults() {
        let file = file(
            "data_dir = '/file'\n[storage]\nsegment_bytes = '64MiB'\nflush_interval = '1s'\n\
             [broker]\ndefault_queues = 3",
        );
        let sources = Sources {
            file: Some(file.path().to_owned()),
            environment: environment(&[
                ("LONGWIRE_STORAGE_SEGMENT_BYTES", "128MiB"),
                ("LONGWIRE_STORAGE_FLUSH_INTERVAL", "2s"),
                ("LONGWIRE_BROKER_AUTO_CREATE_TOPICS", "false"),
                ("PATH", "/bin"),
                ("LONGWIRE_BROKER", "broker.example:7651"),
                ("LONGWIRE_LOG", "debug"),
            ]),
            settings: vec!["storage.segment_bytes=256MiB".into()],
            data_dir: None,
        };
        let Loaded { config, warnings } = load(&sources).unwrap();
        assert_eq!(config.storage.segment_bytes, 256 << 20, "flag");
        assert_eq!(config.storage.flush_interval, Duration::from_secs(2), "environment");
        assert!(!config.broker.auto_create_topics, "environment");
        assert_eq!(config.broker.default_queues, 3, "file");
        assert_eq!(config.data_dir, PathBuf::from("/file"), "file");
        assert_eq!(config.limits, Config::default().limits, "default");
        assert_eq!(warnings, Vec::<String>::new());
    }

    #[test]
    fn the_file_can_be_named_by_the_environment() {
        let file = file("[broker]\ndefault_queues = 5");
        let path = file.path().to_str().unwrap();
        let environment = environment(&[("LONGWIRE_CONFIG", path)]);
        let loaded = load(&Sources { environment, ..Sources::default() }).unwrap();
        assert_eq!(loaded.config.broker.default_queues, 5);
    }

    #[test]
    fn an_empty_variable_is_none() {
        let names = ["CONFIG", "DATA_DIR", "STORAGE_SEGMENT_BYTES", "STORAGE_NOTHING"];
        let names = names.map(|name| format!("{ENV_PREFIX}{name}"));
        let environment = environment(&names.each_ref().map(|name| (name.as_str(), "")));
        let Loaded { config, warnings } =
            load(&Sources { environment, ..Sources::default() }).unwrap();
        assert_eq!((config, warnings), (Config::default(), Vec::new()));
    }

    #[test]
    fn the_printed_configuration_reads_back_as_the_same() {
        let mut config = Config::default();
        config.storage.retention_age = None;
        config.storage.retention_bytes = Some(3_000_000_001);
        config.listen.advertised_data = Some("broker.example:7650".into());
        config.transfer.send_buffer_bytes = Some(123_456);
        for config in [Config::default(), config] {
            let file = file(&config.to_toml().unwrap());
            let sources = Sources { file: Some(file.path().to_owned()), ..Sources::default() };
            assert_eq!(load(&sources).unwrap().config, config);
        }
    }

    #[test]
    fn unknown_keys_are_errors_that_name_them_and_unknown_variables_are_warnings() {
        let file = file("[storage]\nsegment_byte = 1");
        let error = load(&Sources { file: Some(file.path().to_owned()), ..Sources::default() });
        let error = error.unwrap_err().to_string();
        assert!(error.contains("segment_byte") && error.contains("line 2"), "{error}");

        let settings = vec!["storage.nothing=1".into()];
        let error = load(&Sources { settings, ..Sources::default() }).unwrap_err().to_string();
        assert!(error.contains("storage.nothing"), "{error}");

        let environment = environment(&[("LONGWIRE_STORAGE_NOTHING", "1")]);
        let loaded = load(&Sources { environment, ..Sources::default() }).unwrap();
        assert!(loaded.warnings[0].contains("LONGWIRE_STORAGE_NOTHING"));
    }

    #[test]
    fn a_value_of_the_wrong_kind_names_where_it_came_from() {
        for (name, value, expected) in [
            ("LONGWIRE_STORAGE_SEGMENT_BYTES", "big", "a size such as"),
            ("LONGWIRE_BROKER_DEFAULT_QUEUES", "many", "a whole number"),
            ("LONGWIRE_BROKER_DEFAULT_QUEUES", "-1", "invalid value"),
            ("LONGWIRE_BROKER_AUTO_CREATE_TOPICS", "1", "true or false"),
            ("LONGWIRE_LISTEN_DATA", "nowhere", "IP:PORT"),
            ("LONGWIRE_TRANSFER_MODE", "fast", "adaptive"),
            ("LONGWIRE_LIMITS_FRAME_TIMEOUT", "30", "a duration such as"),
            ("LONGWIRE_STORAGE_SEGMENT_BYTES", "1KiB", "64KiB to 1GiB"),
        ] {
            let environment = environment(&[(name, value)]);
            let error = load(&Sources { environment, ..Sources::default() }).unwrap_err();
            let error = error.to_string();
            assert!(error.contains(expected), "{name}={value}: {error}");
        }
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once() {
        let settings =
            ["storage.segment_bytes=1MB", "groups.members_max=0", "listen.data=x", "no=1"];
        let environment = environment(&[("LONGWIRE_BROKER_DEFAULT_QUEUES", "many")]);
        let settings = settings.map(str::to_owned).to_vec();
        let error = load(&Sources { environment, settings, ..Sources::default() });
        let error = error.unwrap_err().to_string();
        let expected =
            ["segment_bytes is", "members_max is 0", "listen.data=x", "\"no\"", "a whole number"];
        assert!(expected.iter().all(|part| error.contains(part)), "{error}");
    }

    #[test]
    fn a_value_that_is_not_text_is_an_error_and_a_folder_need_not_be_text() {
        let bytes = OsString::from_vec(b"/a\xFFb".to_vec());
        let environment = vec![("LONGWIRE_DATA_DIR".into(), bytes.clone())];
        let error = load(&Sources { environment, ..Sources::default() }).unwrap_err().to_string();
        assert!(error.contains("LONGWIRE_DATA_DIR: the value is not valid UTF-8"), "{error}");

        let mut sources = Sources { data_dir: Some(bytes.into()), ..Sources::default() };
        sources.settings = vec!["broker.default_queues=3".into()];
        let config = load(&sources).unwrap().config;
        assert_eq!(
            (Some(&config.data_dir), config.broker.default_queues),
            (sources.data_dir.as_ref(), 3)
        );
        assert!(config.to_toml().is_err());
        sources.settings = vec!["data_dir=/text".into()];
        assert_eq!(load(&sources).unwrap().config.data_dir, PathBuf::from("/text"));
    }

    #[test]
    fn every_setting_is_documented_with_its_variable() {
        let page = include_str!("../../../docs/configuration.md");
        for key in keys(&Config::default()) {
            let name = key.rsplit('.').next().unwrap_or(&key);
            assert!(page.contains(&format!("`{name}`")), "{key} is missing");
        }
    }
}
