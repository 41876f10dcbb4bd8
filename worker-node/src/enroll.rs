//! How a worker becomes one of the cluster: the join token gets it a certificate and a credential of its own, which is all
//! that it shows from then on. A worker with a name keeps them, so it comes back without a token.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use covey_domain::{Error, ErrorKind, caps};
use covey_node::{
    Identity, home,
    tls::{self, NODE_CERTIFICATE_TTL, PinnedAddress, RENEWAL_LOOK, Tls},
};
use covey_proto::{
    from_status,
    v1::{EnrollRequest, link_client::LinkClient},
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tonic::{
    Request,
    metadata::{Ascii, MetadataValue},
    transport::Channel,
};

/// Pause after the first failed dial; doubles up to the last.
pub(crate) const RETRY_FIRST: Duration = Duration::from_millis(50);
pub(crate) const RETRY_LAST: Duration = Duration::from_secs(2);
/// A head that does not answer a dial within this time is not there.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after a renewal that failed.
const RENEW_PAUSE: Duration = Duration::from_secs(3600);
/// The same where nothing is good any more.
const RENEW_PAUSE_OVER: Duration = Duration::from_secs(30);
/// What is kept is not used when it ends within this time.
const SPARE_S: u64 = 60;

/// What the head gave this worker.
#[derive(Clone, Serialize, Deserialize)]
struct Held {
    /// Which head: its fingerprint, or its address where it has none.
    head: String,
    credential: String,
    until_s: u64,
    certificate: Vec<u8>,
    authority: Vec<u8>,
}

/// Where the head is and what opens it.
#[derive(Clone)]
pub(crate) struct Door {
    pub head: PinnedAddress,
    identity: Arc<Identity>,
    /// Enrols, and opens nothing else.
    join: String,
    held: Arc<Mutex<Option<Held>>>,
    /// Where a worker with a name keeps it.
    file: Option<PathBuf>,
}

impl Door {
    /// With what is kept in `file`, where that is of this head and still good.
    pub fn new(head: PinnedAddress, identity: Arc<Identity>, join: String, file: Option<PathBuf>) -> Self {
        let door = Self { head, identity, join, held: Arc::default(), file };
        let kept = door.file.as_ref().and_then(|file| std::fs::read(file).ok());
        let kept: Option<Held> = kept.and_then(|body| serde_json::from_slice(&body).ok());
        if let Some(kept) = kept.filter(|kept| kept.head == door.whose() && kept.until_s > now_s() + SPARE_S)
            && door.identity.certify(kept.certificate.clone(), kept.authority.clone()).is_ok()
        {
            *door.held.lock() = Some(kept);
        }
        door
    }

    fn whose(&self) -> String {
        self.head.pin.map_or_else(|| self.head.address.clone(), |pin| pin.to_string())
    }

    /// What this worker shows to its head.
    pub fn credential(&self) -> String {
        self.held.lock().as_ref().map(|held| held.credential.clone()).unwrap_or_default()
    }

    /// The key behind it.
    pub fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// A connection to the head's link service, and what to show there.
    pub async fn link(&self) -> Result<(LinkClient<Channel>, MetadataValue<Ascii>), Error> {
        Ok((self.dial().await?, bearer(&self.credential())?))
    }

    /// Seconds that what the head gave is good for.
    fn left_s(&self) -> u64 {
        self.held.lock().as_ref().map_or(0, |held| held.until_s.saturating_sub(now_s()))
    }

    async fn dial(&self) -> Result<LinkClient<Channel>, Error> {
        self.head.check()?;
        // With a certificate whose time is over nobody is let in, not even to fetch another.
        let identity = Some(&self.identity).filter(|_| self.left_s() > 0);
        let tls = self.head.pin.map(|pin| Tls::head(pin, identity)).transpose()?;
        let channel = tls::dial(&self.head.address, tls, |endpoint| {
            endpoint
                .connect_timeout(DIAL_TIMEOUT)
                .initial_stream_window_size(4 << 20)
                .initial_connection_window_size(16 << 20)
        });
        Ok(LinkClient::new(channel.await?)
            .max_decoding_message_size(2 * caps::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(2 * caps::MESSAGE_BYTES_MAX))
    }

    /// Shows `token`, proves to have the key, and keeps what the head gives.
    async fn enroll(&self, token: &str) -> Result<(), Error> {
        let mut link = self.dial().await?;
        let public_key = self.identity.public_key()?.to_vec();
        let proof = self.identity.sign(&tls::enrolment(token, &public_key));
        let mut request = Request::new(EnrollRequest { public_key: public_key.into(), proof: proof.into() });
        request.metadata_mut().insert("authorization", bearer(token)?);
        let reply = link.enroll(request).await.map_err(|s| from_status(&s))?.into_inner();
        let held = Held {
            head: self.whose(),
            credential: reply.credential,
            until_s: reply.until_s,
            certificate: reply.certificate.to_vec(),
            authority: reply.authority.to_vec(),
        };
        self.identity.certify(held.certificate.clone(), held.authority.clone())?;
        if let Some(file) = &self.file {
            let body = serde_json::to_vec(&held).map_err(|e| Error::internal(e.to_string()))?;
            home::write_private(file, &body)
                .map_err(|e| Error::internal(format!("failed to write `{}`: {e}", file.display())))?;
        }
        *self.held.lock() = Some(held);
        Ok(())
    }

    /// What the head gave opens nothing any more: it made its keys anew. The join token gets another.
    pub async fn enroll_again(&self) -> Result<(), Error> {
        self.enroll(&self.join).await
    }

    /// Becomes one of the cluster, however long the head is away.
    pub async fn enroll_patiently(&self) -> Result<(), Error> {
        let (mut pause, mut told) = (RETRY_FIRST, String::new());
        while self.held.lock().is_none() {
            match self.enroll(&self.join).await {
                Ok(()) => break,
                Err(error) if is_final(&error) => {
                    return Err(about_token(error));
                }
                Err(error) if error.message == told => {}
                Err(error) => {
                    tracing::warn!(head = self.head.address, %error, "not enrolled yet; asking again");
                    told = error.message;
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_LAST);
        }
        Ok(())
    }

    /// Keeps certificate and credential good: with the credential, so a token for one use is enough for ever. Where their time is
    /// over, as of a machine that slept for a month, the join token gets others.
    pub async fn renew(self) {
        let half = (NODE_CERTIFICATE_TTL / 2).as_secs();
        loop {
            tokio::time::sleep(RENEWAL_LOOK).await;
            let renewed = match self.left_s() {
                0 => self.enroll_again().await.map_err(about_token),
                left if left < half => self.enroll(&self.credential()).await,
                _ => continue,
            };
            if let Err(error) = renewed {
                tracing::warn!(%error, "the certificate was not renewed");
                tokio::time::sleep(if self.left_s() == 0 { RENEW_PAUSE_OVER } else { RENEW_PAUSE }).await;
            }
        }
    }
}

fn bearer(token: &str) -> Result<MetadataValue<Ascii>, Error> {
    MetadataValue::try_from(format!("Bearer {token}")).map_err(|_| Error::invalid("the token is not text"))
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// A refusal that says nothing of what to do is about the token. So is one of a credential: a worker has no other to show.
pub(crate) fn about_token(error: Error) -> Error {
    if error.hint.is_some() && error.kind != ErrorKind::Unauthenticated {
        return error;
    }
    error.hint(
        "`covey token` on the head's machine prints the join token, `covey token --once` makes one for a single node",
    )
}

/// Asking again is no use.
pub(crate) fn is_final(error: &Error) -> bool {
    matches!(
        error.kind,
        ErrorKind::Unauthenticated
            | ErrorKind::PermissionDenied
            | ErrorKind::FailedPrecondition
            | ErrorKind::InvalidArgument
    )
}
