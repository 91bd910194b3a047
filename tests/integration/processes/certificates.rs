//! The serving certificate that the operator issues itself, and the client certificate that it may require, with real API servers and
//! replicas.

use crate::common::cluster::{Cluster, TIMEOUT, until};
use crate::common::creates::{CreateStream, Creates, create_until};
use crate::common::proxy::{Call, Fault, Proxy, Stage};
use crate::common::webhook_client::WebhookClient;
use control_plane::installation::{NAMESPACE, OPERATOR};
use control_plane::{Authority, ControlPlane, Installation, Replica, ServingCertificate};
use futures::StreamExt;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher::watch_object;
use kube::{Api, Client, Resource};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::de::DeserializeOwned;
use serde_json::json;
use std::fmt::Debug;
use std::future::ready;
use std::path::{Path, PathBuf};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const SECRET: &str = "switchboard-webhook-tls";

/// Two replicas that issue their own certificate, valid for `life`, with more `flags`.
fn cluster(control_plane: control_plane::Builder, life: &str, flags: &[String]) -> Cluster {
    let control_plane = control_plane.start().unwrap_or_else(|error| panic!("{error}"));
    let installation = Installation::builder(env!("CARGO_BIN_EXE_switchboard")).replicas(2).self_managed();
    let installation = installation.flag(format!("--certificate-life={life}"));
    Cluster::install(control_plane, &flags.iter().fold(installation, control_plane::InstallationBuilder::flag))
}

fn configurations(client: &Client) -> Api<ValidatingWebhookConfiguration> {
    Api::all(client.clone())
}

/// The CAs that the API servers trust.
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

/// The certificate that a replica serves to a client that trusts the current `caBundle`. It is an error if the bundle does not cover the
/// certificate, or if the replica rejects `identity`.
async fn served(
    client: &Client,
    replica: &Replica,
    identity: Option<&ServingCertificate>,
) -> std::io::Result<CertificateDer<'static>> {
    let configurations = configurations(client);
    let mut trusted = bundle(&configurations.get("switchboard").await.unwrap());
    loop {
        let error = match WebhookClient::new(&trusted, identity).connect(replica.webhook_address()).await {
            Ok(stream) => return Ok(stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()),
            Err(error) => error,
        };
        // The bundle may have changed since it was read.
        let now = bundle(&configurations.get("switchboard").await.unwrap());
        if now == trusted {
            return Err(error);
        }
        trusted = now;
    }
}

/// Waits until a replica serves `expected`, and the `caBundle` covers it.
async fn wait_until_served(
    client: &Client,
    replica: &Replica,
    identity: Option<&ServingCertificate>,
    expected: &CertificateDer<'static>,
) {
    let is_served = async { while served(client, replica, identity).await.ok().as_ref() != Some(expected) {} };
    timeout(TIMEOUT, is_served).await.expect("the replica serves the certificate within the timeout");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_rotations_fail_no_create() {
    let cluster = cluster(ControlPlane::builder().api_servers(2), "15s", &[]);
    let client = cluster.client(0).await;
    let ns = cluster.test_namespace().await;
    let secrets = Api::<Secret>::namespaced(client.clone(), NAMESPACE);
    let done = CancellationToken::new();
    let rotate = async {
        let mut before = secrets.get(SECRET).await.unwrap();
        for _ in 0..2 {
            let renewed = until(secrets.clone(), SECRET, |secret: Option<&Secret>| {
                secret.is_some_and(|secret| part(secret, "tls.crt") != part(&before, "tls.crt"))
            });
            let after = renewed.await.flatten().expect("a renewal within the timeout");
            assert_eq!(certificates(&part(&after, "ca.crt")).len(), 2, "the old and the new CA");
            let new = &certificates(&part(&after, "tls.crt"))[0];
            for replica in cluster.installation.replicas() {
                let trusted = async {
                    while served(&client, replica, None)
                        .await
                        .expect("the bundle covers the served certificate at every moment")
                        != *new
                    {}
                };
                timeout(TIMEOUT, trusted).await.expect("the replica serves the new certificate within the timeout");
            }
            before = after;
        }
        done.cancel();
    };
    let create = |api_server| create_until(&cluster, &ns, api_server, &done);
    let ((), a, b) = tokio::join!(rotate, create(0), create(1));
    println!("{} creates during two rotations, 0 failed", a + b);
    assert!(a > 0 && b > 0);
}

/// Creates per second while certificates are removed.
const RATE: u32 = 20;
/// The number of successful creates in a row that show that admission works again.
const ENOUGH: usize = 2 * RATE as usize;

/// Replaces the webhook configuration with one without a `caBundle`, as `kubectl replace`, `helm upgrade --force-replace` and Argo CD with
/// `Replace=true` do.
async fn replace_configuration(client: &Client) {
    let configurations = configurations(client);
    loop {
        let mut configuration = configurations.get("switchboard").await.unwrap();
        for webhook in configuration.webhooks.iter_mut().flatten() {
            webhook.client_config.ca_bundle = None;
        }
        match configurations.replace("switchboard", &PostParams::default(), &configuration).await {
            Ok(_) => return,
            // The operator has written the configuration in between.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => panic!("{error}"),
        }
    }
}

async fn wait_for_secret(client: &Client, is_so: impl Fn(&Secret) -> bool) -> Secret {
    let secrets = Api::namespaced(client.clone(), NAMESPACE);
    let secret = until(secrets, SECRET, |secret: Option<&Secret>| secret.is_some_and(&is_so)).await;
    secret.flatten().expect("the Secret reaches the expected state within the timeout")
}

async fn wait_for_bundle(client: &Client, expected: &[u8]) {
    let is_so = |configuration: Option<&ValidatingWebhookConfiguration>| {
        configuration.is_some_and(|configuration| bundle(configuration) == expected)
    };
    until(configurations(client), "switchboard", is_so).await.expect("the expected caBundle within the timeout");
}

/// Waits until all replicas serve with a new key, and the old CA is no longer in the bundle.
async fn wait_for_new_keys(cluster: &Cluster, client: &Client, before: &Secret) {
    let renewed = wait_for_secret(client, |secret| {
        !part(secret, "tls.crt").is_empty() && part(secret, "tls.key") != part(before, "tls.key")
    });
    let renewed = certificates(&part(&renewed.await, "tls.crt"));
    for replica in cluster.installation.replicas() {
        wait_until_served(client, replica, None, &renewed[0]).await;
    }
    let old = certificates(&part(before, "ca.crt"));
    let is_alone = |secret: &Secret| {
        let trusted = certificates(&part(secret, "ca.crt"));
        trusted.len() == 1 && !old.contains(&trusted[0])
    };
    let secret = wait_for_secret(client, is_alone).await;
    wait_for_bundle(client, &part(&secret, "ca.crt")).await;
}

/// Counts the states that an object has been in. Its absence is also a state.
fn count_states<K>(api: Api<K>, name: &str) -> watch::Receiver<usize>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let (sender, receiver) = watch::channel(0);
    let states = watch_object(api, name).take_while(|state| ready(state.is_ok()));
    tokio::spawn(states.for_each(move |_| {
        sender.send_modify(|count| *count += 1);
        ready(())
    }));
    receiver
}

fn print(fault: &str, creates: &Creates) {
    let Creates { sent, failures } = creates;
    println!("{fault}: {sent} creates, {} failed within {:.2?}", failures.len(), creates.outage());
}

fn assert_only_x509(creates: &Creates) {
    let others: Vec<_> = creates.failures.iter().filter(|failure| !failure.error.contains("x509")).collect();
    assert!(others.is_empty(), "{others:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replaced_configuration_gets_its_ca_bundle_back() {
    let cluster = cluster(ControlPlane::builder().api_servers(2), "2160h", &[]);
    let client = cluster.client(0).await;
    let ns = cluster.test_namespace().await;
    let before = wait_for_secret(&client, |_| true).await;
    let mut creates = CreateStream::start(&cluster, &ns, RATE).await;
    creates.wait_for_successes(ENOUGH).await;
    replace_configuration(&client).await;
    wait_for_bundle(&client, &part(&before, "ca.crt")).await;
    creates.wait_for_successes(ENOUGH).await;
    let creates = creates.stop().await;
    print("configuration replaced", &creates);
    assert_only_x509(&creates);
    assert_eq!(wait_for_secret(&client, |_| true).await.data, before.data, "no replica changes the Secret");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_secret_fails_no_create_and_brings_new_keys() {
    let cluster = cluster(ControlPlane::builder().api_servers(2), "120s", &[]);
    let client = cluster.client(0).await;
    let ns = cluster.test_namespace().await;
    let secrets = Api::<Secret>::namespaced(client.clone(), NAMESPACE);
    let before = wait_for_secret(&client, |_| true).await;
    let states_of_secret = count_states(secrets.clone(), SECRET);
    let states_of_configuration = count_states(configurations(&client), "switchboard");
    let mut creates = CreateStream::start(&cluster, &ns, RATE).await;
    creates.wait_for_successes(ENOUGH).await;
    secrets.delete(SECRET, &DeleteParams::default()).await.unwrap();
    wait_for_new_keys(&cluster, &client, &before).await;
    creates.wait_for_successes(ENOUGH).await;
    let creates = creates.stop().await;
    print("Secret deleted", &creates);
    assert!(creates.failures.is_empty(), "{:?}", creates.failures);
    assert_eq!(*states_of_secret.borrow(), 5, "initial, deleted, reissued, promoted, retired: no replica writes twice");
    assert_eq!(*states_of_configuration.borrow(), 3, "the old CA, both CAs, the new CA");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn configuration_and_secret_are_restored_if_lost_together() {
    let cluster = cluster(ControlPlane::builder().api_servers(2), "120s", &[]);
    let client = cluster.client(0).await;
    let ns = cluster.test_namespace().await;
    let secrets = Api::<Secret>::namespaced(client.clone(), NAMESPACE);
    let before = wait_for_secret(&client, |_| true).await;
    let mut creates = CreateStream::start(&cluster, &ns, RATE).await;
    creates.wait_for_successes(ENOUGH).await;
    let delete = async { secrets.delete(SECRET, &DeleteParams::default()).await.unwrap() };
    tokio::join!(replace_configuration(&client), delete);
    wait_for_new_keys(&cluster, &client, &before).await;
    creates.wait_for_successes(ENOUGH).await;
    let creates = creates.stop().await;
    print("configuration replaced and Secret deleted", &creates);
    assert_only_x509(&creates);
}

/// A control plane, and a proxy between the operator and its API server.
async fn start_behind_proxy() -> (ControlPlane, Proxy) {
    let control_plane = ControlPlane::builder().user(OPERATOR, &["system:serviceaccounts"]).start();
    let control_plane = control_plane.unwrap_or_else(|error| panic!("{error}"));
    let proxy = Proxy::to_api_server(&control_plane, 0).await;
    (control_plane, proxy)
}

/// Installs `replicas` replicas behind the proxy, which issue their own certificate.
fn install_behind(proxy: &Proxy, control_plane: ControlPlane, replicas: usize) -> Cluster {
    let installation = Installation::builder(env!("CARGO_BIN_EXE_switchboard")).replicas(replicas).self_managed();
    let installation = installation.env("KUBECONFIG", proxy.kubeconfig(&control_plane, OPERATOR));
    Cluster::install(control_plane, &installation.flag("--certificate-life=90s"))
}

#[tokio::test]
async fn timer_restores_the_ca_bundle_if_watches_are_dead() {
    let (control_plane, proxy) = start_behind_proxy().await;
    let watches = ["/validatingwebhookconfigurations", "/secrets"].map(|path| {
        proxy.inject(Stage::After, Fault::Pass, move |call| {
            call.is("GET", path)
                && call.query.contains("watch=true")
                && call.query.contains("fieldSelector=metadata.name%3Dswitchboard")
        })
    });
    let cluster = install_behind(&proxy, control_plane, 1);
    let client = cluster.client(0).await;
    let secret = wait_for_secret(&client, |_| true).await;
    for watch in &watches {
        watch.wait_for(1).await;
    }
    proxy.kill_watches();
    replace_configuration(&client).await;
    wait_for_bundle(&client, &part(&secret, "ca.crt")).await;
    cluster.test_namespace().await.create("alice", json!({})).await.expect("the API server trusts the certificate");
}

/// An uninstall removes the webhook configuration first, and the Secret while replicas may still drain.
#[tokio::test]
async fn lost_secret_is_restored_only_with_a_configuration() {
    let (control_plane, proxy) = start_behind_proxy().await;
    let cluster = install_behind(&proxy, control_plane, 1);
    let client = cluster.client(0).await;
    let (configurations, secrets) = (configurations(&client), Api::<Secret>::namespaced(client.clone(), NAMESPACE));
    let mut configuration = configurations.get("switchboard").await.unwrap();
    configurations.delete("switchboard", &DeleteParams::default()).await.unwrap();
    let before = wait_for_secret(&client, |_| true).await;
    secrets.delete(SECRET, &DeleteParams::default()).await.unwrap();
    let reads =
        proxy.inject(Stage::After, Fault::Pass, |call| call.is("GET", "/validatingwebhookconfigurations/switchboard"));
    // By the second read, the operator has finished what the first read led to.
    reads.wait_for(2).await;
    assert!(secrets.get_opt(SECRET).await.unwrap().is_none());

    configuration.metadata = ObjectMeta { name: configuration.metadata.name, ..ObjectMeta::default() };
    configuration.webhooks.as_mut().unwrap()[0].client_config.ca_bundle = None;
    configurations.create(&PostParams::default(), &configuration).await.unwrap();
    wait_for_new_keys(&cluster, &client, &before).await;
    cluster.test_namespace().await.create("alice", json!({})).await.expect("the API server trusts the certificate");
}

/// A control plane whose API server presents a client certificate to webhooks, and the flags by which the operator requires it.
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

/// A directory that is removed when this is dropped.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[tokio::test]
async fn replicas_share_a_restored_certificate_and_verify_clients() {
    let directory = Directory(std::env::temp_dir().join(format!("switchboard-clients-{}", std::process::id())));
    std::fs::create_dir_all(&directory.0).unwrap();
    let authority = Authority::new("clients").unwrap();
    let (control_plane, flags) = with_clients(&directory.0, &authority, "api-server");
    let cluster = cluster(control_plane, "90s", &flags);
    let client = cluster.client(0).await;
    let ns = cluster.test_namespace().await;
    let secrets = Api::<Secret>::namespaced(client.clone(), NAMESPACE);
    let secret = secrets.get(SECRET).await.unwrap();
    let identity = authority.issue("api-server").unwrap();
    for replica in cluster.installation.replicas() {
        let served = served(&client, replica, Some(&identity)).await.unwrap();
        assert_eq!(
            served,
            certificates(&part(&secret, "tls.crt"))[0],
            "every replica serves the certificate of the Secret"
        );
    }
    assert_eq!(certificates(&part(&secret, "ca.crt")).len(), 1, "two replicas that start together agree on one CA");

    let review = |identity: Option<ServingCertificate>| {
        let webhook_client = WebhookClient::new(&part(&secret, "ca.crt"), identity.as_ref());
        let address = cluster.installation.replica(0).webhook_address();
        async move { webhook_client.review(address, b"{}").await }
    };
    let stranger = Authority::new("clients").unwrap();
    assert_eq!(
        review(Some(identity.clone())).await.unwrap().code,
        400,
        "the connection is accepted, and the body is not a review"
    );
    for (client, identity) in [
        ("a client without a certificate", None),
        ("a client with a certificate of another CA", Some(stranger.issue("api-server").unwrap())),
        ("a client with another name", Some(authority.issue("kubelet").unwrap())),
    ] {
        let answer = review(identity).await;
        assert!(answer.is_err(), "{client} was accepted: {answer:?}");
    }

    let wiped = json!({"webhooks": [{"name": "conversations.switchboard.dev", "clientConfig": {"caBundle": ""}}]});
    let configurations = configurations(&client);
    configurations.patch("switchboard", &PatchParams::default(), &Patch::Strategic(wiped)).await.unwrap();
    wait_for_bundle(&client, &part(&secret, "ca.crt")).await;

    secrets.delete(SECRET, &DeleteParams::default()).await.unwrap();
    let restored = wait_for_secret(&client, |restored| {
        !part(restored, "tls.crt").is_empty() && part(restored, "tls.crt") != part(&secret, "tls.crt")
    });
    let restored = restored.await;
    assert_eq!(
        restored.type_.as_deref(),
        Some("Opaque"),
        "the same type as in the chart, or an upgrade could not adopt the Secret"
    );
    let restored = certificates(&part(&restored, "tls.crt"));
    for replica in cluster.installation.replicas() {
        wait_until_served(&client, replica, Some(&identity), &restored[0]).await;
    }
    ns.create("alice", json!({})).await.expect("the API server trusts the certificate");
}

#[tokio::test]
async fn second_of_two_concurrent_certificate_writes_gives_way() {
    let (control_plane, proxy) = start_behind_proxy().await;
    let cluster = install_behind(&proxy, control_plane, 2);
    let client = cluster.client(0).await;
    let secrets = Api::<Secret>::namespaced(client.clone(), NAMESPACE);
    let before = secrets.get(SECRET).await.unwrap();

    // Both replicas read the invalid Secret, and both issue another certificate.
    let is_write = |call: &Call| call.is("PUT", &format!("/secrets/{SECRET}"));
    let mut writes = proxy.hold(Stage::Before, is_write);
    let answers = proxy.inject(Stage::After, Fault::Pass, is_write);
    let invalid = json!({"data": {"tls.crt": null}});
    secrets.patch(SECRET, &PatchParams::default(), &Patch::Merge(invalid)).await.unwrap();
    let (first, second) = (writes.next().await, writes.next().await);
    drop((writes, first));
    answers.wait_for(1).await;
    let made = secrets.get(SECRET).await.unwrap();
    drop(second);
    answers.wait_for(2).await;
    assert_eq!(secrets.get(SECRET).await.unwrap().data, made.data, "the first write remains");
    let [old, made] = [part(&before, "tls.crt"), part(&made, "next.crt")].map(|pem| certificates(&pem));
    assert_ne!(old, made);
    for replica in cluster.installation.replicas() {
        wait_until_served(&client, replica, None, &made[0]).await;
    }
    cluster.test_namespace().await.create("alice", json!({})).await.expect("the API server trusts the certificate");
}
