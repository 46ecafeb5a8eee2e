//! What is made of several ordinary syscalls: a turn of the classic loop, a request to another process.

use futures_util::future::join_all;

use super::dispatch::tool_result;
use super::{Answer, Caller, Cost, Options, Outcome, Stop, Syscall};
use crate::abi::{Errno, Error, Reply, ToolCall, ToolResult};
use crate::ipc::Filter;
use crate::process::{Input, Message, Pid};
use crate::tool::Lookup;

/// A call of a turn with its result.
#[derive(Clone, Debug, PartialEq)]
pub struct Called {
    /// The call.
    pub call: ToolCall,
    /// Its result.
    pub result: ToolResult,
}

/// How a turn ended.
#[derive(Clone, Debug, PartialEq)]
pub enum StepOutcome {
    /// The model called tools; their results are in the window.
    Continuing(Vec<Called>),
    /// The model answered without a call.
    Answered(String),
}

impl Caller {
    /// Runs one turn. The second value is the fuel of the guests that it ran.
    ///
    /// # Errors
    /// [`Stop`] when the process cannot go on; the inner result is what the agent sees.
    pub async fn step(&self, options: Options) -> Result<(Result<StepOutcome, Error>, Cost), Stop> {
        let mut cost = Cost::default();
        if let Outcome::Failed(e) = self.call(Syscall::Step).await?.outcome {
            return Ok((Err(e), cost));
        }
        let reply = match self.call(Syscall::Generate(options)).await?.outcome {
            Outcome::Reply(reply) => reply,
            Outcome::Failed(e) => return Ok((Err(e), cost)),
            other => return Err(self.stop(Stop::Store(format!("a model call gave {other:?}")))),
        };
        let Reply { text, tool_calls, .. } = reply;
        let outcome = if tool_calls.is_empty() {
            StepOutcome::Answered(text)
        } else {
            let (called, calls_cost) = self.call_all(tool_calls).await?;
            cost.fuel += calls_cost.fuel;
            StepOutcome::Continuing(called)
        };
        if self.recorded(self.position()).is_none() {
            let calls = match &outcome {
                StepOutcome::Continuing(called) => called.len(),
                StepOutcome::Answered(_) => 0,
            };
            cost.fuel += self.tell_step(calls).await;
        }
        Ok((Ok(outcome), cost))
    }

    /// Runs calls and makes each result a page, in call order. Neighbours that leave the world as it
    /// is run concurrently; one that changes it runs alone, after those before it.
    ///
    /// # Errors
    /// [`Stop`] when the process cannot go on.
    pub async fn call_all(&self, calls: Vec<ToolCall>) -> Result<(Vec<Called>, Cost), Stop> {
        // Positions and pages are handed out in call order before any call starts, so that a replay
        // finds each where it was however they were interleaved.
        let mut waiting: Vec<_> = calls
            .into_iter()
            .map(|call| {
                let syscall = Syscall::Call { call, page: true };
                (self.reserve(&syscall), syscall)
            })
            .collect();
        let mut called = Vec::with_capacity(waiting.len());
        let mut cost = Cost::default();
        while !waiting.is_empty() {
            let together = waiting.iter().take_while(|(_, s)| self.leaves_the_world(s)).count().max(1);
            let group: Vec<_> = waiting.drain(..together).collect();
            let calls: Vec<_> = group.iter().map(|(_, s)| s.clone()).collect();
            let answers = join_all(group.into_iter().map(|(ticket, s)| self.run(ticket, s))).await;
            for (syscall, answer) in calls.into_iter().zip(answers) {
                let Answer { outcome, cost: one, .. } = answer?;
                cost.fuel += one.fuel;
                if let Syscall::Call { call, .. } = syscall {
                    called.push(Called { call, result: tool_result(outcome) });
                }
            }
        }
        Ok((called, cost))
    }

    /// Sends a message and waits for its answer: two syscalls.
    ///
    /// # Errors
    /// [`Stop`] when the process cannot go on; the inner result is what the agent sees.
    pub async fn ask_peer(
        &self,
        to: Pid,
        topic: String,
        body: Input,
        timeout_ms: Option<u64>,
    ) -> Result<Result<Message, Error>, Stop> {
        let id = match self.call(Syscall::Send { to, topic, body, reply_to: None }).await?.outcome {
            Outcome::Number(id) => id,
            Outcome::Failed(e) => return Ok(Err(e)),
            other => return Err(self.stop(Stop::Store(format!("a send gave {other:?}")))),
        };
        let receive = Syscall::Receive { filter: Filter::ReplyTo(id), from: Some(to), timeout_ms };
        match self.call(receive).await?.outcome {
            Outcome::Message(Some(message)) => Ok(Ok(message)),
            Outcome::Message(None) => {
                let ms = timeout_ms.unwrap_or_default();
                Ok(Err(Error::new(Errno::Timeout, format!("process {to} did not answer within {ms} ms"))))
            }
            Outcome::Failed(e) => Ok(Err(e)),
            other => Err(self.stop(Stop::Store(format!("a receive gave {other:?}")))),
        }
    }

    fn leaves_the_world(&self, syscall: &Syscall) -> bool {
        let Syscall::Call { call, .. } = syscall else { return false };
        match self.services().tools.find(&call.name) {
            Lookup::Found(entry) => !entry.spec.effect.is_outward(),
            Lookup::Ambiguous(_) | Lookup::Unknown => true,
        }
    }
}
