//! The token to join by, where it was put. Linux glue.

use blixard_core::api::token::Secret;
use blixard_core::discovery::target::JoinTarget;
use blixard_core::discovery::ticket::Ticket;

use crate::config::JoinToken;
use crate::daemon::Error;
use crate::discovery::files;

/// Reads it. A ticket has one, and says who to ask besides.
///
/// # Errors
/// When the file cannot be read, or holds no token.
pub(crate) fn read_token(token: &JoinToken, targets: &mut Vec<JoinTarget>) -> Result<Secret, Error> {
    let path = match token {
        JoinToken::Given(token) => return Ok(token.clone()),
        JoinToken::File(path) => path,
    };
    let text = files::read_text(path).map_err(|error| format!("--token-file: {error}"))?;
    if let Ok(token) = text.trim().parse() {
        return Ok(token);
    }
    // What is in it is a secret, perhaps of something else: it is not repeated.
    let ticket: Ticket = text.trim().parse().map_err(|_| {
        format!(
            "--token-file {}: it holds neither a token nor a ticket: put the output of `blixard cluster token create` on a member there",
            path.display()
        )
    })?;
    targets.push(JoinTarget::Ticket(Box::new(ticket.clone())));
    Ok(ticket.token)
}
