//! `covey chat`.

use std::io::{BufRead as _, Write as _};

use covey_client::{Client, NewTask};
use covey_domain::{Error, TaskId, event::Content, task::TaskInput};

#[derive(clap::Args)]
#[command(after_help = "Example:\n  covey chat assistant\n  > Repeat: sun moon star")]
pub(crate) struct Args {
    /// Agent
    #[arg(default_value = "assistant")]
    agent: String,
}

pub(crate) async fn run(args: Args) -> Result<(), Error> {
    let client = Client::connect_default().await?;
    if !client.agents().await?.iter().any(|a| a.name.as_str() == args.agent) {
        return Err(Error::not_found("agent", &args.agent).hint("`covey agents` lists them"));
    }
    errln!("{} · an empty line or Ctrl-D ends", args.agent);
    let mut context = String::new();
    loop {
        err!("> ");
        let _ = std::io::stderr().flush();
        let line = tokio::task::spawn_blocking(|| {
            let mut line = String::new();
            std::io::stdin().lock().read_line(&mut line).map(|n| (n > 0).then_some(line))
        });
        let line = line.await.ok().and_then(Result::ok).flatten();
        let Some(line) = line.map(|l| l.trim().to_owned()).filter(|l| !l.is_empty()) else { return Ok(()) };
        let made = client
            .submit(NewTask {
                agent: args.agent.clone(),
                skill: String::new(),
                input: TaskInput { content: vec![Content::Text(line)], ..Default::default() },
                context: context.clone(),
                message_id: String::new(),
                timeout_ms: 0,
                model: String::new(),
            })
            .await?;
        context.clone_from(&made.context);
        super::submit::show(&client, &TaskId::from(made.task), 0).await?;
    }
}
