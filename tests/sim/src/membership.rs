//! Who belongs to the group: nodes are added, promoted, removed and replaced, as an operator would through the facade
//! of consensus. One change at a time; it goes on until a leader has carried it out, whatever goes wrong meanwhile.

use std::collections::BTreeSet;
use std::time::Duration;

use kubemq_raft::{Error, Member, Node as Raft};
use kubemq_runtime::Random;

use crate::cluster::{Cluster, Program, SETTLING};
use crate::network::address;

/// The most voters.
const MOST: usize = 5;
/// The fewest voters.
const FEWEST: usize = 3;
/// How long a leader may take for one step of a change.
const STEP: Duration = Duration::from_secs(10);
/// How long to wait before asking again.
const PAUSE: Duration = Duration::from_millis(200);

/// A change of the voters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A node goes for ever, and one with an empty disk takes its place under a new id.
    Replace(usize),
    /// One more votes.
    Grow,
    /// One less votes, and goes once it does not.
    Shrink(usize),
}

impl<P: Program> Cluster<P> {
    /// Returns one of the nodes.
    #[must_use]
    pub fn any(&self, draw: &Random) -> usize {
        let nodes = self.nodes();
        let at = usize::try_from(draw.below(nodes.len() as u64)).unwrap_or(0);
        nodes.get(at).copied().unwrap_or(1)
    }

    /// Begins a change, unless another is under way, the group has the wrong size for it, or too few whole copies of
    /// the log would be left: what one damaged disk has lost may be on no other that goes.
    pub fn change(&self, change: Change) {
        let groups = self.groups();
        let [old] = groups.as_slice() else { return };
        let goes = match change {
            Change::Replace(node) | Change::Shrink(node) => Some(node),
            Change::Grow => None,
        };
        let fits = match change {
            Change::Replace(_) => true,
            Change::Grow => old.len() < MOST,
            Change::Shrink(_) => old.len() > FEWEST,
        };
        let whole = self.damaged().is_none_or(|damaged| goes == Some(damaged));
        if !fits || !whole || goes.is_some_and(|node| !old.contains(&node)) {
            return;
        }
        if let Change::Replace(node) = change {
            self.retire(node);
        }
        let comes = (!matches!(change, Change::Shrink(_))).then(|| self.add());
        let new: BTreeSet<usize> = old.iter().copied().filter(|node| goes != Some(*node)).chain(comes).collect();
        self.world().trace(0, format_args!("membership {old:?} becomes {new:?}"));
        self.set_groups(vec![old.clone(), new.clone()]);
        let cluster = self.clone();
        let task = async move {
            while !cluster.carried_out(comes, &new).await {
                cluster.world().sleep(PAUSE).await;
            }
            cluster.world().trace(0, format_args!("membership is {new:?}"));
            cluster.set_groups(vec![new]);
            if let Some(node) = goes {
                cluster.retire(node);
            }
        };
        self.world().spawn(self.harness(), "membership", Box::pin(task));
    }

    /// Asks the leader once; returns whether the change is committed.
    async fn carried_out(&self, comes: Option<usize>, voters: &BTreeSet<usize>) -> bool {
        let Some(leader) = self.leader() else { return false };
        let voters: BTreeSet<u64> = voters.iter().map(|node| *node as u64).collect();
        let asked = self.call(leader, STEP, move |running| async move {
            let raft: Raft = P::raft(&running).clone();
            if let Some(node) = comes {
                raft.add_learner(node as u64, Member { address: address(node) }, false).await?;
            }
            raft.change_voters(voters, false).await
        });
        let result: Option<Result<(), Error>> = asked.await;
        self.world().trace(leader, format_args!("membership asked: {:?}", result.as_ref().map(Result::is_ok)));
        matches!(result, Some(Ok(())))
    }

    /// Waits, after the faults have ended, until no change is under way and the damaged node, if there is one, is
    /// replaced.
    ///
    /// # Errors
    ///
    /// When that takes longer than it may.
    pub async fn changed(&self) -> Result<(), String> {
        let limit = self.world().now() + 2 * u64::try_from(SETTLING.as_nanos()).unwrap_or(u64::MAX);
        loop {
            if self.groups().len() == 1 {
                match self.damaged() {
                    Some(damaged) => self.change(Change::Replace(damaged)),
                    None => return Ok(()),
                }
            }
            if self.world().now() > limit {
                return Err(format!("the members did not change: {:?}", self.groups()));
            }
            self.world().sleep(PAUSE).await;
        }
    }
}
