//! The checkpoint's file, whatever is in it.

use longwire_storage::OpenError;
use longwire_storage::disk::{Disk, RealDisk};
use longwire_storage::testing::{CheckpointSays, read_checkpoint, write_checkpoint};

use super::input::{Input, file, folder};

pub(super) fn run(data: &[u8]) {
    let folder = folder();
    let path = folder.path().join("checkpoint");
    let said = match read_checkpoint(&*file(&path, data), &path) {
        Ok(said) => said,
        Err(error) => {
            assert!(matches!(error, OpenError::Version { .. }), "{error}");
            return assert!(std::fs::read(&path).expect("it is there") == data, "and unchanged");
        }
    };
    if let Some((_, durable, _)) = said.newest {
        assert!(said.durable >= Some(durable), "the flush mark only adds");
    }
    // Whatever was in it, what is written next counts.
    let mut input = Input(data);
    let next = (input.byte() & 1 > 0, input.u64(), input.u64() as i64);
    if write_checkpoint(&RealDisk, &path, next).is_ok() {
        let file = RealDisk.open(&path).expect("it is there");
        let CheckpointSays { newest, durable } =
            read_checkpoint(&*file, &path).expect("it was just written");
        assert_eq!(newest, Some(next));
        assert!(durable >= Some(next.1));
    }
}
