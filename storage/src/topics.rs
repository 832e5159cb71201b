//! The topics that are being served.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::RwLock;

use crate::consume_queue::ConsumeQueue;
use crate::marks::Marks;
use crate::queue::{Topic, TopicConfig};
use crate::queue_files::{FileCache, QueueFiles};
use crate::views::database::NotedFiles;
use crate::views::{Effect, Views, created_position, system_topic, topic_config};

/// Topics by name. Only the dispatcher changes which there are.
#[derive(Debug)]
pub(crate) struct Topics {
    dir: PathBuf,
    cache: Arc<FileCache>,
    marks: Arc<Marks>,
    by_name: RwLock<HashMap<Arc<str>, Arc<Topic>>>,
}

impl Topics {
    pub(crate) fn new(dir: PathBuf, cache: Arc<FileCache>, marks: Arc<Marks>) -> Topics {
        Topics { dir, cache, marks, by_name: RwLock::default() }
    }

    pub(crate) fn get(&self, name: &str) -> Option<Arc<Topic>> {
        self.by_name.read().get(name).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Topic>> {
        self.by_name.read().values().cloned().collect()
    }

    /// Opens every topic of the views, its consume queues as the checkpoint has noted them.
    ///
    /// `false` if one of them is not what it was: then files were lost or damaged, and the queues have
    /// to be built again from the log.
    pub(crate) fn open(&self, views: &Views, noted: &NotedFiles) -> io::Result<bool> {
        let system = system_topic::ALL.map(|name| (TopicConfig::new(name, 1), 0));
        let configs = views.topics.values();
        let configs = configs.map(|at| (topic_config(&at.value), created_position(at)));
        for (config, created) in system.into_iter().chain(configs) {
            let files = QueueFiles::open(self.cache.clone(), self.dir.join(&config.name))?;
            let topic = Arc::new(Topic::new(config.clone(), created, files));
            let name = topic.name().clone();
            let mut whole = true;
            topic.configure(config, &self.marks, |queue| {
                let noted = noted.get(&(name.clone(), created, queue));
                let files = topic.files().clone();
                let loaded = ConsumeQueue::load(files, queue, noted.map_or(&[], |files| files))?;
                whole &= loaded.is_some();
                Ok(loaded.unwrap_or_else(|| ConsumeQueue::empty(topic.files().clone(), queue)))
            })?;
            self.by_name.write().insert(name, topic);
            if !whole {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Forgets all topics and removes their consume queues.
    pub(crate) fn remove_all(&self) -> io::Result<()> {
        let topics = std::mem::take(&mut *self.by_name.write());
        topics.values().try_for_each(|topic| topic.files().remove_all())
    }

    /// Takes over what a folded record says. Can be called again where it has failed.
    pub(crate) fn apply(&self, effect: &Effect) -> io::Result<()> {
        match effect {
            Effect::None => Ok(()),
            Effect::TopicConfigured(config, created) => self.configure(config.clone(), *created),
            Effect::TopicDeleted(name) => self.delete(name),
        }
    }

    fn configure(&self, config: TopicConfig, created: u64) -> io::Result<()> {
        let topic = match self.get(&config.name) {
            Some(topic) => topic,
            None => {
                let files = QueueFiles::open(self.cache.clone(), self.dir.join(&config.name))?;
                // Files of a deleted topic of that name, whose removal a crash undid.
                files.remove_all()?;
                Arc::new(Topic::new(config.clone(), created, files))
            }
        };
        let empty = |id| Ok(ConsumeQueue::empty(topic.files().clone(), id));
        topic.configure(config, &self.marks, empty)?;
        self.by_name.write().insert(topic.name().clone(), topic);
        Ok(())
    }

    /// Where it fails the topic is gone all the same: files that stay go before there is another of that
    /// name.
    fn delete(&self, name: &str) -> io::Result<()> {
        let Some(topic) = self.by_name.write().remove(name) else {
            return Ok(());
        };
        topic.queues().iter().for_each(|queue| queue.delete());
        topic.files().delete()
    }
}
