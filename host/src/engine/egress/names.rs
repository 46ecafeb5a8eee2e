//! Names of hosts: each looked up once per request, here.

use std::io;
use std::net::SocketAddr;

/// Asks the system's resolver.
#[cfg(not(test))]
#[derive(Debug, Default)]
pub(super) struct Names;

#[cfg(not(test))]
impl Names {
    pub(super) async fn look_up(&self, name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host((name, port)).await?.collect())
    }
}

/// Asks the system's resolver, unless a test has written the answers.
#[cfg(test)]
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Of any name, one after the other.
    pub(super) answers: std::sync::Mutex<std::collections::VecDeque<Vec<std::net::IpAddr>>>,
}

#[cfg(test)]
impl Names {
    pub(super) async fn look_up(&self, name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let written = self.answers.lock().unwrap().pop_front();
        match written {
            Some(answer) => Ok(answer.into_iter().map(|ip| SocketAddr::new(ip, port)).collect()),
            None => Ok(tokio::net::lookup_host((name, port)).await?.collect()),
        }
    }
}
