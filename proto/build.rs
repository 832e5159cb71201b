//! Compiles the `.proto` files with protox, so that a build needs no `protoc`.

use std::{env, fs, path::PathBuf};

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let data = ["longwire/data/v1/data.proto", "longwire/store/v1/store.proto"];
    let control = [
        "longwire/v1/topic.proto",
        "longwire/v1/group.proto",
        "longwire/v1/offset.proto",
        "longwire/v1/broker.proto",
    ];
    println!("cargo:rerun-if-changed=proto");

    tonic_prost_build::configure()
        .build_client(false)
        .build_server(false)
        .compile_fds(protox::compile(data, ["proto"])?)?;

    if env::var_os("CARGO_FEATURE_GRPC").is_some() {
        let descriptors = protox::compile(control, ["proto"])?;
        let out = PathBuf::from(env::var("OUT_DIR")?).join("control_descriptors.bin");
        fs::write(out, descriptors.encode_to_vec())?;
        tonic_prost_build::configure().compile_fds(descriptors)?;
    }
    Ok(())
}
