//! The way in.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::admin::Admin;
use crate::connection::{Connection, Session};
use crate::consumer::ConsumerBuilder;
use crate::control::Control;
use crate::producer::ProducerBuilder;
use crate::{Error, ErrorKind};

/// It is part of a frame's header, and a broker keeps it with each member.
const CLIENT_ID_BYTES_MAX: usize = 1024;

/// A broker, as seen from here: makes producers, consumers and an [`Admin`].
///
/// Cheap to clone. Reconnects by itself; producers and consumers have data connections of their own,
/// and each member of a group has a control connection of its own.
#[derive(Debug, Clone)]
pub struct Client {
    core: Arc<Core>,
}

#[derive(Debug)]
struct Core {
    control: Control,
    /// Where the data plane was last known to be.
    data_address: Mutex<String>,
    client_id: String,
    connect_timeout: Duration,
}

impl Client {
    /// Connects to the broker whose control plane is at `address`, `host:port`.
    ///
    /// The data plane's address is learned from it.
    pub async fn connect(address: impl Into<String>) -> Result<Client, Error> {
        Client::builder(address).connect().await
    }

    /// A client for the broker whose control plane is at `address`, to be set up further.
    pub fn builder(address: impl Into<String>) -> ClientBuilder {
        ClientBuilder {
            address: address.into(),
            client_id: format!("longwire-client-{}", std::process::id()),
            connect_timeout: Duration::from_secs(5),
        }
    }

    /// A producer, to be set up further.
    pub fn producer(&self) -> ProducerBuilder {
        ProducerBuilder::new(self.clone())
    }

    /// A consumer, to be set up further.
    pub fn consumer(&self) -> ConsumerBuilder {
        ConsumerBuilder::new(self.clone())
    }

    /// Manages topics, groups and offsets.
    pub fn admin(&self) -> Admin {
        Admin::new(self.clone())
    }

    pub(crate) fn control(&self) -> &Control {
        &self.core.control
    }

    pub(crate) fn client_id(&self) -> &str {
        &self.core.client_id
    }

    pub(crate) fn connect_timeout(&self) -> Duration {
        self.core.connect_timeout
    }

    /// Opens a data connection. If none can be had, the broker is asked whether its data plane moved:
    /// somebody else may listen where it was. Only a data plane refuses.
    pub(crate) async fn open_connection(&self, session: &Session) -> Result<Connection, Error> {
        let Core { control, data_address, client_id, connect_timeout } = &*self.core;
        let known = data_address.lock().clone();
        let failure = match Connection::open(&known, client_id, session, *connect_timeout).await {
            Err(error) if error.kind() != ErrorKind::Refused => error,
            opened => return opened,
        };
        match control.data_address(*connect_timeout).await {
            Ok(current) if current != known => {
                data_address.lock().clone_from(&current);
                Connection::open(&current, client_id, session, *connect_timeout).await
            }
            _ => Err(failure),
        }
    }
}

/// Settings of a [`Client`].
#[derive(Debug, Clone)]
pub struct ClientBuilder {
    address: String,
    client_id: String,
    connect_timeout: Duration,
}

impl ClientBuilder {
    /// What the client is called in the broker's logs and in group descriptions.
    /// At most 1 KiB. Default: `longwire-client-` and the process id.
    pub fn client_id(mut self, client_id: impl Into<String>) -> ClientBuilder {
        self.client_id = client_id.into();
        self
    }

    /// How long each step of connecting may take: to reach the control plane, to be told by it where
    /// the data plane is, and to be let in there. Default: 5 s.
    pub fn connect_timeout(mut self, connect_timeout: Duration) -> ClientBuilder {
        self.connect_timeout = connect_timeout;
        self
    }

    /// Connects. Fails with [`ErrorKind::Unreachable`](crate::ErrorKind::Unreachable) if nothing
    /// answers there, or something that is no control plane.
    pub async fn connect(self) -> Result<Client, Error> {
        let id_bytes = self.client_id.len();
        if id_bytes > CLIENT_ID_BYTES_MAX {
            let message = format!(
                "a client id of {id_bytes} bytes is too long; the limit is {CLIENT_ID_BYTES_MAX}"
            );
            return Err(Error::invalid(message));
        }
        let control = Control::connect(&self.address, self.connect_timeout).await?;
        let data_address = control.data_address(self.connect_timeout).await;
        let data_address = Mutex::new(data_address.map_err(|e| self.not_understood(e))?);
        let ClientBuilder { client_id, connect_timeout, .. } = self;
        Ok(Client { core: Arc::new(Core { control, data_address, client_id, connect_timeout }) })
    }

    /// What answers may be another port of a broker, which says nothing that makes sense here.
    fn not_understood(&self, error: Error) -> Error {
        match (error.code(), error.kind()) {
            (None, ErrorKind::ConnectionLost | ErrorKind::Refused) => {
                let message = format!(
                    "{} does not answer like a broker's control plane, whose port is 7651 unless \
                     it is set otherwise: {error}",
                    self.address
                );
                Error::new(ErrorKind::Unreachable, message)
            }
            _ => error,
        }
    }
}
