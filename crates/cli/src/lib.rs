//! One binary, covey: head, worker, up, submit, chat, status, token, model.
