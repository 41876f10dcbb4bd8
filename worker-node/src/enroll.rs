//! How a worker gets its certificate, and a new one before that ends.

use std::{sync::Arc, time::Duration};

use covey_domain::{Error, ErrorKind, caps};
use covey_node::{
    Identity,
    tls::{self, NODE_CERTIFICATE_TTL, PinnedAddress, Tls},
};
use covey_proto::{
    from_status,
    v1::{EnrollRequest, link_client::LinkClient},
};
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

/// Where the head is and what opens it.
#[derive(Clone)]
pub(crate) struct Door {
    pub head: PinnedAddress,
    pub secret: String,
    pub identity: Arc<Identity>,
}

impl Door {
    /// A connection to the head's link service, and what to show there.
    pub async fn link(&self) -> Result<(LinkClient<Channel>, MetadataValue<Ascii>), Error> {
        let tls = self.head.pin.map(|pin| Tls::head(pin, Some(&self.identity))).transpose()?;
        let channel = tls::dial(&self.head.address, tls, |endpoint| {
            endpoint
                .connect_timeout(DIAL_TIMEOUT)
                .initial_stream_window_size(4 << 20)
                .initial_connection_window_size(16 << 20)
        });
        let link = LinkClient::new(channel.await?)
            .max_decoding_message_size(2 * caps::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(2 * caps::MESSAGE_BYTES_MAX);
        let bearer = MetadataValue::try_from(format!("Bearer {}", self.secret))
            .map_err(|_| Error::invalid("the join secret is not text"))?;
        Ok((link, bearer))
    }

    async fn enroll(&self) -> Result<(), Error> {
        let (mut link, bearer) = self.link().await?;
        let mut request = Request::new(EnrollRequest { public_key: self.identity.public_key()?.to_vec().into() });
        request.metadata_mut().insert("authorization", bearer);
        let reply = link.enroll(request).await.map_err(|s| from_status(&s))?.into_inner();
        self.identity.certify(reply.certificate.to_vec(), reply.authority.to_vec())
    }

    /// Gets a certificate where TLS is spoken, however long the head is away.
    pub async fn enroll_patiently(&self) -> Result<(), Error> {
        let (mut pause, mut told) = (RETRY_FIRST, String::new());
        while self.head.pin.is_some() {
            match self.enroll().await {
                Ok(()) => break,
                Err(error) if is_final(&error) => return Err(error),
                Err(error) if error.message == told => {}
                Err(error) => {
                    tracing::warn!(head = self.head.address, %error, "no certificate yet; asking again");
                    told = error.message;
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_LAST);
        }
        Ok(())
    }

    /// Keeps the certificate good.
    pub async fn renew(self) {
        while self.head.pin.is_some() {
            tokio::time::sleep(NODE_CERTIFICATE_TTL / 2).await;
            while let Err(error) = self.enroll().await {
                tracing::warn!(%error, "the certificate was not renewed");
                tokio::time::sleep(RENEW_PAUSE).await;
            }
        }
    }
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
