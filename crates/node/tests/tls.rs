//! Certificates at work: who gets in, by which name, and who does not.

use std::{convert::Infallible, sync::Arc};

use covey_domain::NodeId;
use covey_node::{
    Identity,
    tls::{self, Authority, Pin, Port, Tls, TlsPeer},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower::{Service as _, ServiceExt as _};

/// Answers 204 when the caller showed the certificate of `node`, else 403.
async fn serve(port: Port, node: NodeId) -> (String, CancellationToken) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let app = tower::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let known = request.extensions().get::<TlsPeer>().is_some_and(|peer| peer.is_node(&node));
        async move {
            let status = if known { 204 } else { 403 };
            Ok::<_, Infallible>(hyper::Response::builder().status(status).body(tonic::body::Body::empty()).unwrap())
        }
    });
    let stop = CancellationToken::new();
    tokio::spawn(tls::serve(listener, port, app, stop.clone()));
    (address, stop)
}

async fn ask(address: &str, tls: Option<Tls>) -> Result<u16, String> {
    let mut channel = tls::dial(address, tls, |e| e).await.map_err(|e| e.message)?;
    let request = hyper::Request::get(format!("http://{address}/")).body(tonic::body::Body::empty()).unwrap();
    let ready = channel.ready().await.map_err(|e| e.to_string())?;
    Ok(ready.call(request).await.map_err(|e| format!("{e:?}"))?.status().as_u16())
}

/// What the authority gives to who shows a token and has the key.
fn certificate(authority: &Authority, identity: &Identity) -> (NodeId, Vec<u8>) {
    let key = identity.public_key().unwrap();
    let proof = identity.sign(&tls::enrolment("token", &key));
    authority.for_node("token", &key, &proof).unwrap()
}

fn identity(authority: &Authority) -> Arc<Identity> {
    let identity = Identity::ephemeral();
    let (node, certificate) = certificate(authority, &identity);
    assert_eq!(node, identity.node());
    identity.certify(certificate, authority.certificate().to_vec()).unwrap();
    Arc::new(identity)
}

#[tokio::test]
async fn the_head_and_nodes_know_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Arc::new(Authority::load_or_create(dir.path()).unwrap());
    let pin = authority.pin();
    assert_eq!(Authority::load_or_create(dir.path()).unwrap().pin(), pin, "it is kept");
    let other = tempfile::tempdir().unwrap();
    let stranger = Authority::load_or_create(other.path()).unwrap();

    let (a, b) = (identity(&authority), identity(&authority));
    let head = authority.head_tls(vec!["localhost".into()], None).unwrap();
    let windows = (1 << 20, 1 << 20);
    let (address, stop) =
        serve(Port { tls: Some(Arc::new(head)), plaintext: false, mesh: None, windows }, a.node()).await;

    let dialled = |pin: Pin, who: Option<&Arc<Identity>>| Some(Tls::head(pin, who).unwrap());
    assert_eq!(ask(&address, dialled(pin, Some(&a))).await, Ok(204));
    assert_eq!(ask(&address, dialled(pin, Some(&b))).await, Ok(403), "its certificate is another node's");
    assert_eq!(ask(&address, dialled(pin, None)).await, Ok(403), "it showed none");
    let wrong = ask(&address, dialled(stranger.pin(), None)).await.unwrap_err();
    assert!(wrong.contains("fingerprint"), "{wrong}");
    assert!(ask(&address, dialled(pin, Some(&identity(&stranger)))).await.is_err(), "another cluster's node");
    assert!(ask(&address, Some(Tls::node(pin, &a.node(), None).unwrap())).await.is_err(), "the head is no node");
    assert!(ask(&address, None).await.is_err(), "no plaintext here");
    stop.cancel();

    // A node's own port.
    let own = b.server_tls().unwrap().unwrap();
    let (address, _stop) =
        serve(Port { tls: Some(Arc::new(own)), plaintext: true, mesh: None, windows }, a.node()).await;
    let node = |id: &NodeId| Some(Tls::node(pin, id, Some(&a)).unwrap());
    assert_eq!(ask(&address, node(&b.node())).await, Ok(204));
    assert!(ask(&address, node(&a.node())).await.is_err(), "somebody else answers there");
    assert!(ask(&address, dialled(pin, None)).await.is_err(), "a node is no head");
    assert_eq!(ask(&address, None).await, Ok(403), "plaintext is allowed here, and knows nobody");
}

#[test]
fn wrong_keys_get_no_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::load_or_create(dir.path()).unwrap();
    assert!(authority.for_node("token", &[1, 2, 3], &[0; 64]).is_err());
    let (own, other) = (Identity::ephemeral(), Identity::ephemeral());
    let proof = own.sign(&tls::enrolment("token", &other.public_key().unwrap()));
    assert!(authority.for_node("token", &other.public_key().unwrap(), &proof).is_err(), "the proof is of another key");
    let (_, certificate) = certificate(&authority, &other);
    assert!(own.certify(certificate, authority.certificate().to_vec()).is_err(), "it is for another key");
    assert!(own.server_tls().unwrap().is_none());
}

/// All points of small order, as RFC 8032 writes them, and as others do who do not reduce.
const SMALL_ORDER: &[&str] = &[
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "0100000000000000000000000000000000000000000000000000000000000080",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
];

#[test]
fn keys_for_which_anybody_can_sign_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::load_or_create(dir.path()).unwrap();
    // Neither needs a private key: R is the neutral element, and S is 0. It holds whenever the hash is a multiple of the
    // order of the key: for the neutral element always, for others with one token in eight at least.
    let mut proof = [0; 64];
    proof[0] = 1;
    for key in SMALL_ORDER {
        let key: Vec<u8> = (0..32).map(|i| u8::from_str_radix(&key[2 * i..2 * i + 2], 16).unwrap()).collect();
        for token in 0..64 {
            assert!(authority.for_node(&token.to_string(), &key, &proof).is_err(), "{key:?} with token {token}");
        }
    }
}
