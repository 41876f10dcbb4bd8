//! A server that speaks S3 and checks who asks, over a folder: for tests, here and of the product. Prints where it listens.
//!
//! `s3_server FOLDER`; each folder in it is a bucket, the key is `key` with the secret `secret`.

use std::{net::SocketAddr, path::Path};

use hyper_util::rt::{TokioExecutor, TokioIo};
use s3s::{auth::SimpleAuth, service::S3ServiceBuilder};

/// Serves the folder from now on.
pub async fn serve(folder: &Path) -> SocketAddr {
    let files = s3s_fs::FileSystem::new(folder).expect("a folder that is there");
    let mut builder = S3ServiceBuilder::new(files);
    builder.set_auth(SimpleAuth::from_single("key", "secret"));
    let service = builder.build();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("a bound address");
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let service = service.clone();
            tokio::spawn(async move {
                let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(socket), service).await;
            });
        }
    });
    address
}

#[tokio::main]
async fn main() {
    let folder = std::env::args().nth(1).expect("usage: s3_server FOLDER");
    println!("{}", serve(Path::new(&folder)).await);
    std::future::pending::<()>().await;
}
