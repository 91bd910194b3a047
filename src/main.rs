//! x
fn main() {
    for crd in [switchboard::api::conversation_crd().unwrap(), switchboard::api::address_binding_crd().unwrap()] {
        println!("---\n{}", serde_saphyr::to_string(&crd).unwrap());
    }
}
