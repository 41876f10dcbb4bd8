//! The same of every place: a folder, and a bucket of a server that speaks S3 and checks who asks.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use covey_artifacts::{Artifacts, Error};
use covey_domain::Digest;
use futures::TryStreamExt as _;

#[path = "../examples/s3_server.rs"]
#[expect(dead_code, reason = "it has a main of its own")]
mod s3_server;

async fn bucket(root: &std::path::Path, secret: &str) -> HashMap<String, String> {
    std::fs::create_dir_all(root.join("files")).unwrap();
    let address = s3_server::serve(root).await;
    [
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", secret),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ENDPOINT_URL", &format!("http://{address}")),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

async fn read(place: &Artifacts, digest: &Digest, range: std::ops::Range<u64>) -> Vec<u8> {
    place.get(digest, range).await.unwrap().try_collect::<Vec<Bytes>>().await.unwrap().concat()
}

async fn holds(place: Artifacts) {
    let small = Bytes::from_static(b"a small file");
    let known = place.put(small.clone()).await.unwrap();
    assert_eq!(known, Digest::of(&small));
    assert_eq!(read(&place, &known, 0..12).await, small);
    assert_eq!(read(&place, &known, 2..7).await, b"small");
    assert!(read(&place, &known, 0..0).await.is_empty());
    // Again is the same.
    place.put(small.clone()).await.unwrap();

    // In pieces, over more than one part of an upload.
    let large: Vec<u8> = (0..20_000_000_u32).map(|n| (n % 251) as u8).collect();
    let mut upload = place.upload(Digest::of(&large));
    for piece in large.chunks(3_000_001) {
        upload.write(piece).await.unwrap();
    }
    let (known_large, bytes) = upload.finish().await.unwrap();
    assert_eq!(bytes, 20_000_000);
    assert_eq!(read(&place, &known_large, 0..bytes).await, large);
    assert_eq!(read(&place, &known_large, 19_999_000..bytes).await, large[19_999_000..]);

    // One that is not what it says is not there.
    let wrong = Digest::of(b"something else");
    let mut upload = place.upload(wrong.clone());
    upload.write(&large).await.unwrap();
    assert!(matches!(upload.finish().await, Err(Error::Digest)));
    assert!(matches!(place.get(&wrong, 0..1).await, Err(Error::NotFound)));

    place.delete(&known).await.unwrap();
    place.delete(&known).await.unwrap();
    assert!(matches!(place.get(&known, 0..1).await, Err(Error::NotFound)));
}

#[tokio::test]
async fn a_folder_holds_files() {
    let dir = tempfile::tempdir().unwrap();
    let place = Artifacts::open(dir.path().join("artifacts").to_str().unwrap()).unwrap();
    assert!(place.link(&Digest::of(b"x"), Duration::from_secs(60)).await.is_none());
    holds(place).await;
}

#[tokio::test]
async fn a_bucket_holds_files() {
    let dir = tempfile::tempdir().unwrap();
    let variables = bucket(dir.path(), "secret").await;
    let place = Artifacts::open_with("s3://files/covey", variables).unwrap();
    let link = place.link(&Digest::of(b"x"), Duration::from_secs(60)).await.unwrap().unwrap();
    assert!(link.contains("X-Amz-Signature") && link.contains("files"), "{link}");
    holds(place).await;
}

#[tokio::test]
async fn a_bucket_asks_who_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let variables = bucket(dir.path(), "wrong").await;
    let place = Artifacts::open_with("s3://files", variables).unwrap();
    assert!(matches!(place.put(Bytes::from_static(b"x")).await, Err(Error::Store(_))));
}

#[test]
fn what_is_no_place_is_told() {
    assert!(matches!(Artifacts::open("gs://bucket"), Err(Error::Place(_))));
    assert!(matches!(Artifacts::open("s3://"), Err(Error::Place(_))));
}
