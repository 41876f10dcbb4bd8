//! What both processes share: settings, credentials, logs, shutdown.
