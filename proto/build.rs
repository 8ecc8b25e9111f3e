//! Generates the Rust types from the schema with protox, so that no protoc need be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["schema/tidegate/v1/client.proto", "schema/tidegate/event/v1/event.proto"];
    println!("cargo:rerun-if-changed=schema");
    let descriptors = protox::compile(files, ["schema"])?;
    prost_build::Config::new()
        // Bodies, ids and nested payloads become slices of the read buffer instead of copies.
        .bytes(["."])
        .compile_fds(descriptors)?;
    Ok(())
}
