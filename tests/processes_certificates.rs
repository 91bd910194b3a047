//! The serving certificate that the operator makes for itself, and the one that it may ask of its callers, by real API servers and
//! replicas.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends where something is not as it must be"
)]

mod common;

use common::caller::Caller;
use common::cluster::{Cluster, PATIENCE, until};
use common::creates::create_until;
use common::proxy::{Call, Fate, Proxy, Stage};
use control_plane::installation::{NAMESPACE, OPERATOR};
use control_plane::{Authority, ControlPlane, Installation, Replica, ServingCertificate};
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, Client};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::json;
use std::path::{Path, PathBuf};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const SECRET: &str = "switchboard-webhook-tls";

/// Two replicas that make their own certificate, valid for `life`, with those flags besides.
fn cluster(control_plane: control_plane::Builder, life: &str, flags: &[String]) -> Cluster {
    let control_plane = control_plane.start().unwrap_or_else(|error| panic!("{error}"));
    let installation = Installation::builder(env!("CARGO_BIN_EXE_switchboard")).replicas(2).self_managed();
    let installation = installation.flag(format!("--certificate-life={life}"));
    Cluster::install(control_plane, &flags.iter().fold(installation, control_plane::InstallationBuilder::flag))
}

fn configurations(client: &Client) -> Api<ValidatingWebhookConfiguration> {
    Api::all(client.clone())
}

/// What the API servers are to trust.
fn bundle(configuration: &ValidatingWebhookConfiguration) -> Vec<u8> {
    let webhook = &configuration.webhooks.as_ref().unwrap()[0];
    webhook.client_config.ca_bundle.clone().map(|bundle| bundle.0).unwrap_or_default()
}

fn certificates(pem: &[u8]) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().unwrap()
}

fn part(secret: &Secret, key: &str) -> Vec<u8> {
    secret.data.as_ref().and_then(|data| data.get(key)).map(|part| part.0.clone()).unwrap_or_default()
}

/// The certificate that a replica serves to somebody who trusts what the API servers are to trust at that moment; an error where it
/// is not trusted, or does not trust `identity`.
async fn served(
    client: &Client,
    replica: &Replica,
    identity: Option<&ServingCertificate>,
) -> std::io::Result<CertificateDer<'static>> {
    let configurations = configurations(client);
    let mut trusted = bundle(&configurations.get("switchboard").await.unwrap());
    loop {
        let error = match Caller::new(&trusted, identity).connect(replica.webhook_address()).await {
            Ok(stream) => return Ok(stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()),
            Err(error) => error,
        };
        // It may have changed since it was read.
        let now = bundle(&configurations.get("switchboard").await.unwrap());
        if now == trusted {
            return Err(error);
        }
        trusted = now;
    }
}

/// Waits until a replica serves `expected` to somebody who trusts it.
async fn wait_until_served(
    client: &Client,
    replica: &Replica,
    identity: Option<&ServingCertificate>,
    expected: &CertificateDer<'static>,
) {
    let is_served = async { while served(client, replica, identity).await.ok().as_ref() != Some(expected) {} };
    timeout(PATIENCE, is_served).await.expect("the certificate of the Secret is served in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_rotations_under_constant_creates_fail_none_of_them() {
    let cluster = cluster(ControlPlane::builder().api_servers(2), "15s", &[]);
    let client = cluster.client(0).await;
    let desk = cluster.desk().await;
    let secrets = Api::<Secret>::namespaced(client.clone(), NAMESPACE);
    let done = CancellationToken::new();
    let rotate = async {
        let mut before = secrets.get(SECRET).await.unwrap();
        for _ in 0..2 {
            let renewed = until(secrets.clone(), SECRET, |secret: Option<&Secret>| {
                secret.is_some_and(|secret| part(secret, "tls.crt") != part(&before, "tls.crt"))
            });
            let after = renewed.await.flatten().expect("a renewal in time");
            assert_eq!(certificates(&part(&after, "ca.crt")).len(), 2, "the old and the new CA");
            let new = &certificates(&part(&after, "tls.crt"))[0];
            for replica in cluster.installation.replicas() {
                let trusted =
                    async { while served(&client, replica, None).await.expect("trusted at every moment") != *new {} };
                timeout(PATIENCE, trusted).await.expect("the new certificate is served in time");
            }
            before = after;
        }
        done.cancel();
    };
    let create = |api_server| create_until(&cluster, &desk, api_server, &done);
    let ((), a, b) = tokio::join!(rotate, create(0), create(1));
    println!("{} creates during two rotations, 0 failed", a + b);
    assert!(a > 0 && b > 0);
}

/// What an API server needs to be told in order to show a certificate to webhooks, and the flag of the operator's that asks for it.
fn with_clients(directory: &Path, authority: &Authority, name: &str) -> (control_plane::Builder, [String; 2]) {
    let write = |file: &str, content: &str| {
        let path = directory.join(file);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let ServingCertificate { certificate, key } = authority.issue(name).unwrap();
    let users = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "users": [{"name": "*", "user": {
            "client-certificate": write("client.crt", &certificate),
            "client-key": write("client.key", &key),
        }}],
    });
    let configuration = json!({
        "apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "AdmissionConfiguration",
        "plugins": [{"name": "ValidatingAdmissionWebhook", "configuration": {
            "apiVersion": "apiserver.config.k8s.io/v1",
            "kind": "WebhookAdmissionConfiguration",
            "kubeConfigFile": write("users.json", &users.to_string()),
        }}],
    });
    let configuration = write("admission.json", &configuration.to_string());
    let flag = format!("--admission-control-config-file={configuration}");
    let trusted = write("clients.crt", authority.certificate());
    let flags = [format!("--client-ca-file={trusted}"), format!("--client-name={name}")];
    (ControlPlane::builder().api_server_flag(flag), flags)
}

/// A directory that is gone when this is dropped.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[tokio::test]
async fn replicas_agree_on_a_certificate_mend_what_is_spoilt_by_hand_and_let_nobody_in_but_the_api_server() {
    let directory = Directory(std::env::temp_dir().join(format!("switchboard-clients-{}", std::process::id())));
    std::fs::create_dir_all(&directory.0).unwrap();
    let authority = Authority::new("clients").unwrap();
    let (control_plane, flags) = with_clients(&directory.0, &authority, "api-server");
    let cluster = cluster(control_plane, "90s", &flags);
    let client = cluster.client(0).await;
    let desk = cluster.desk().await;
    let secrets = Api::<Secret>::namespaced(client.clone(), NAMESPACE);
    let secret = secrets.get(SECRET).await.unwrap();
    let identity = authority.issue("api-server").unwrap();
    for replica in cluster.installation.replicas() {
        let served = served(&client, replica, Some(&identity)).await.unwrap();
        assert_eq!(served, certificates(&part(&secret, "tls.crt"))[0], "every replica serves what the Secret holds");
    }
    assert_eq!(certificates(&part(&secret, "ca.crt")).len(), 1, "of two that started at once one has given way");

    let review = |identity: Option<ServingCertificate>| {
        let caller = Caller::new(&part(&secret, "ca.crt"), identity.as_ref());
        let address = cluster.installation.replica(0).webhook_address();
        async move { caller.review(address, b"{}").await }
    };
    let stranger = Authority::new("clients").unwrap();
    assert_eq!(review(Some(identity.clone())).await.unwrap().code, 400, "it gets in, and is no review");
    for (who, identity) in [
        ("nobody", None),
        ("somebody with a certificate of another CA", Some(stranger.issue("api-server").unwrap())),
        ("somebody with another name", Some(authority.issue("kubelet").unwrap())),
    ] {
        let answer = review(identity).await;
        assert!(answer.is_err(), "{who} got in: {answer:?}");
    }

    let wiped = json!({"webhooks": [{"name": "conversations.switchboard.dev", "clientConfig": {"caBundle": ""}}]});
    let configurations = configurations(&client);
    configurations.patch("switchboard", &PatchParams::default(), &Patch::Strategic(wiped)).await.unwrap();
    let mended = |configuration: Option<&ValidatingWebhookConfiguration>| {
        configuration.is_some_and(|configuration| bundle(configuration) == part(&secret, "ca.crt"))
    };
    until(configurations.clone(), "switchboard", mended).await.expect("the caBundle in time");

    secrets.delete(SECRET, &DeleteParams::default()).await.unwrap();
    let made = until(secrets.clone(), SECRET, |secret: Option<&Secret>| secret.is_some()).await;
    let made = made.flatten().expect("a Secret in time");
    assert_eq!(made.type_.as_deref(), Some("Opaque"), "as the chart's, or an upgrade could not take it over");
    let made = certificates(&part(&made, "tls.crt"));
    for replica in cluster.installation.replicas() {
        wait_until_served(&client, replica, Some(&identity), &made[0]).await;
    }
    desk.create("alice", json!({})).await.expect("the API server trusts it");
}

#[tokio::test]
async fn of_two_replicas_that_make_a_certificate_at_once_the_second_gives_way() {
    let control_plane = ControlPlane::builder().user(OPERATOR, &["system:serviceaccounts"]).start();
    let control_plane = control_plane.unwrap_or_else(|error| panic!("{error}"));
    let proxy = Proxy::to_api_server(&control_plane, 0).await;
    let installation = Installation::builder(env!("CARGO_BIN_EXE_switchboard")).replicas(2).self_managed();
    let installation = installation.env("KUBECONFIG", proxy.kubeconfig(&control_plane, OPERATOR));
    let cluster = Cluster::install(control_plane, &installation.flag("--certificate-life=90s"));
    let client = cluster.client(0).await;
    let secrets = Api::<Secret>::namespaced(client.clone(), NAMESPACE);
    let before = secrets.get(SECRET).await.unwrap();

    // Both read that it is of no use, and both make another one.
    let is_write = |call: &Call| call.is("PUT", &format!("/secrets/{SECRET}"));
    let mut writes = proxy.hold(Stage::Before, is_write);
    let answers = proxy.inflict(Stage::After, Fate::Pass, is_write);
    let spoilt = json!({"data": {"tls.crt": null}});
    secrets.patch(SECRET, &PatchParams::default(), &Patch::Merge(spoilt)).await.unwrap();
    let (first, second) = (writes.next().await, writes.next().await);
    drop((writes, first));
    answers.wait_for(1).await;
    let made = secrets.get(SECRET).await.unwrap();
    drop(second);
    answers.wait_for(2).await;
    assert_eq!(secrets.get(SECRET).await.unwrap().data, made.data, "what was written first stands");
    let [old, made] = [before, made].map(|secret| certificates(&part(&secret, "tls.crt")));
    assert_ne!(old, made);
    for replica in cluster.installation.replicas() {
        wait_until_served(&client, replica, None, &made[0]).await;
    }
    cluster.desk().await.create("alice", json!({})).await.expect("the API server trusts it");
}
