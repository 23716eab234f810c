//! What must hold in every history, looked at after every step; and what must hold once everything that went wrong is mended.

use std::collections::BTreeSet;
use std::fmt;
use std::hash::{Hash, Hasher};

use super::world::{ClientIndex, Note, Proof, World};
use crate::protocol::claim::{Claim, Loss, Notice, Ticket};
use crate::protocol::command::{Command, NodeIndex, Value};
use crate::protocol::fence::Fence;
use crate::protocol::time::Instant;

/// What went wrong in a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// Two clients believed at one moment that they hold.
    TwoHolders(ClientIndex, ClientIndex),
    /// A validity that was over went on.
    Revived(ClientIndex),
    /// A validity that was told ended earlier, without a release and without a loss.
    Shortened(ClientIndex),
    /// A lock was lost because its keys were gone, though nothing had taken them.
    LostWithoutCause(ClientIndex),
    /// A lock was extended for a client although another had held it since it was won.
    ExtendedOverAnother(ClientIndex),
    /// An extension was sent although the lease was over, or released.
    ExtendedAfterTheEnd(ClientIndex),
    /// A claim is woken when it asked to be, and asks to be woken at the same moment again and again.
    WokenInVain(ClientIndex),
    /// A claim was woken, and competes after the end of its wait, or holds although its loss was to be told; or it does not ask
    /// to be woken by then.
    Overdue(ClientIndex),
    /// A fence came with a lock that is not above the one before.
    FenceNotAbove(ClientIndex),
    /// Two locks came with the same fence.
    SameFenceTwice(ClientIndex),
    /// A node was asked for a third time to win one lock with its fence.
    ThirdRoundTrip(ClientIndex),
    /// Two locks are proven to have been exclusive, and were held at once.
    TwoProven(ClientIndex, ClientIndex),
    /// Everything was mended, and a lock that nothing befell is not proven to have been exclusive.
    NotProven(ClientIndex),
    /// Everything was mended, and a client that wants the free resource does not get it.
    NoProgress(ClientIndex),
    /// Everything was mended and released, and a key stands.
    LeftBehind(NodeIndex, Value),
}

impl Violation {
    /// Whether it is the same kind of violation.
    pub fn is_like(&self, other: &Violation) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Violation::TwoHolders(one, other) => write!(f, "c{} and c{} hold at once", one + 1, other + 1),
            Violation::Revived(client) => write!(f, "the lock of c{} was over, and is back", client + 1),
            Violation::Shortened(client) => write!(f, "the validity of c{} was shortened", client + 1),
            Violation::LostWithoutCause(client) => write!(f, "c{} lost its lock without a cause", client + 1),
            Violation::ExtendedOverAnother(client) => {
                write!(f, "c{} extended a lock that another had held meanwhile", client + 1)
            }
            Violation::ExtendedAfterTheEnd(client) => {
                write!(f, "c{} sent an extension for a lock that was over", client + 1)
            }
            Violation::WokenInVain(client) => write!(f, "c{} is woken in vain", client + 1),
            Violation::Overdue(client) => write!(f, "c{} does not end in time", client + 1),
            Violation::FenceNotAbove(client) => {
                write!(f, "the fence of c{} is not above that of the grant before", client + 1)
            }
            Violation::SameFenceTwice(client) => {
                write!(f, "the fence of c{} came with another lock before", client + 1)
            }
            Violation::ThirdRoundTrip(client) => write!(f, "c{} takes a third round trip", client + 1),
            Violation::TwoProven(one, other) => {
                write!(
                    f,
                    "c{} and c{} held at once, and both are proven to have been alone",
                    one + 1,
                    other + 1
                )
            }
            Violation::NotProven(client) => write!(f, "c{} cannot prove what nothing befell", client + 1),
            Violation::NoProgress(client) => write!(f, "c{} does not get the free lock", client + 1),
            Violation::LeftBehind(node, value) => write!(f, "{value:?} is left at n{}", node + 1),
        }
    }
}

/// Looks at a world after every step. It remembers what a single look cannot show.
#[derive(Clone, Debug, Default, Hash)]
pub struct Checker {
    seen: Vec<Seen>,
    /// That came with the last lock.
    fence: Fence,
    /// All that came with a lock, where two may hold at once: then a guarded store has nothing else to tell them apart.
    fences: BTreeSet<Fence>,
    /// What was held, where it can be proven. Not where worlds are folded: it has names in it.
    holdings: Vec<Holding>,
    /// Two that were valid at once.
    at_once: BTreeSet<(Held, Held)>,
}

/// A client, and the number of its claim.
type Held = (ClientIndex, u32);

/// A lock from when it was won.
#[derive(Clone, Debug, Hash)]
struct Holding {
    held: Held,
    /// Its release was sent.
    has_ended: bool,
    /// It was told whether it is proven.
    is_told: bool,
    /// Those that were held beside it, in the order in which that began.
    beside: Vec<Held>,
    /// How many those were when proofs were asked for.
    asked: Vec<(Ticket, usize)>,
    /// How many of them it is proven not to have been held beside.
    denied: usize,
}

impl Holding {
    fn denies(&self, other: Held) -> bool {
        self.beside[..self.denied].contains(&other)
    }
}

/// A claim may have several things to do at one moment, one after the other, but not this many.
const MOST_WAKES: u32 = 8;

/// What was seen of a client's present claim.
#[derive(Clone, Debug, Default, Hash)]
struct Seen {
    claim: u32,
    valid_until: Option<Instant>,
    /// The loss was told.
    lost: bool,
    /// What was released last.
    released: Option<Value>,
    /// It held, and does not any more.
    over: bool,
    /// When it was woken last, and how often without time having passed.
    woken: (Instant, u32),
    /// When another client won since this one did, on this one's clock.
    another_won_at: Option<Instant>,
    /// The nodes at which the present attempt has raised its fence.
    raised_at: Vec<NodeIndex>,
}

impl Checker {
    /// Looks at the world after a step.
    ///
    /// # Errors
    ///
    /// What is wrong there.
    pub fn look(&mut self, world: &World) -> Result<(), Violation> {
        let clients = world.scope().clients;
        self.seen.resize(clients, Seen::default());
        let mut holder = None;
        for note in world.notes() {
            match note {
                Note::Proof { client, claim, comes } if !world.scope().folds => {
                    self.weigh((*client, *claim), *comes)?;
                }
                _ if world.scope().only_proofs => {}
                note => self.judge(world, note)?,
            }
        }
        if world.scope().only_proofs {
            self.note_who_hold_at_once(world);
            return Ok(());
        }
        for client in 0..clients {
            let holds_until = world.holds_until(client);
            let other = holds_until.and_then(|_| holder.replace(client));
            if let Some(other) = other.filter(|_| world.scope().exclusive) {
                return Err(Violation::TwoHolders(other, client));
            }
            self.follow(world, client, holds_until)?;
            let wakes_at = world.claim(client).map_or(Instant::NEVER, Claim::wake_at);
            if world.ends_by(client).is_some_and(|end| wakes_at > end) {
                return Err(Violation::Overdue(client));
            }
        }
        Ok(())
    }

    /// How many pairs of locks were valid at once and released, so that each was told whether it is proven.
    pub(super) fn overlaps(&self) -> u64 {
        let is_told = |held: &Held| self.holdings.iter().any(|other| other.held == *held && other.is_told);
        self.at_once.iter().filter(|(one, other)| is_told(one) && is_told(other)).count() as u64
    }

    fn note_who_hold_at_once(&mut self, world: &World) {
        let holds = |client: &ClientIndex| world.holds_until(*client).is_some();
        let holders =
            (0..world.scope().clients).filter(holds).map(|client| (client, world.begun(client) - 1));
        let holders: Vec<Held> = holders.collect();
        for (place, one) in holders.iter().enumerate() {
            self.at_once.extend(holders[place + 1..].iter().map(|other| (*one, *other)));
        }
    }

    /// Two locks that were held at once must not both be proven to have been exclusive: not up to their ends, nor up to when that
    /// was asked.
    fn weigh(&mut self, held: Held, comes: Proof) -> Result<(), Violation> {
        if comes == Proof::Begins {
            let others = self.holdings.iter_mut().filter(|other| !other.has_ended);
            let beside = others.map(|other| {
                other.beside.push(held);
                other.held
            });
            let beside = beside.collect();
            let (has_ended, is_told, asked, denied) = (false, false, Vec::new(), 0);
            self.holdings.push(Holding { held, has_ended, is_told, beside, asked, denied });
            return Ok(());
        }
        let Some(holding) = self.holdings.iter_mut().find(|other| other.held == held) else { return Ok(()) };
        match comes {
            Proof::Begins => {}
            Proof::Ends => holding.has_ended = true,
            Proof::AskedFor(ticket) => holding.asked.push((ticket, holding.beside.len())),
            Proof::Verified(ticket) => {
                let asked = holding.asked.iter().find(|(asked, _)| *asked == ticket);
                holding.denied = holding.denied.max(asked.map_or(0, |(_, beside)| *beside));
            }
            Proof::Released(proven) => {
                holding.is_told = true;
                if proven {
                    holding.denied = holding.beside.len();
                }
            }
        }
        let holding = holding.clone();
        let contradicts = |other: &&Holding| holding.denies(other.held) && other.denies(held);
        let other = self.holdings.iter().find(contradicts);
        other.map_or(Ok(()), |other| Err(Violation::TwoProven(other.held.0, held.0)))
    }

    /// What was seen of the fences so far.
    pub(super) fn fence(&self) -> Fence {
        self.fence
    }

    /// What was seen of a client's claim, whosever it is: a claim of one attempt has one value to release.
    pub(super) fn hash_of(&self, client: ClientIndex, hasher: &mut impl Hasher) {
        let Some(seen) = self.seen.get(client) else { return };
        let Seen { claim, valid_until, lost, released, over, woken, another_won_at, .. } = seen;
        (claim, valid_until, lost, released.is_some(), over, woken, another_won_at).hash(hasher);
    }

    /// The nodes at which a client's attempt has raised its fence.
    pub(super) fn raised_at(&self, client: ClientIndex) -> &[NodeIndex] {
        self.seen.get(client).map_or(&[], |seen| &seen.raised_at)
    }

    /// Whether a validity only ever grows, and ends once.
    fn follow(
        &mut self,
        world: &World,
        client: ClientIndex,
        holds_until: Option<Instant>,
    ) -> Result<(), Violation> {
        let seen = &mut self.seen[client];
        if seen.claim != world.begun(client) {
            *seen = Seen { claim: world.begun(client), ..Seen::default() };
        }
        if seen.over && holds_until.is_some() {
            return Err(Violation::Revived(client));
        }
        seen.over |= seen.valid_until.is_some() && holds_until.is_none();
        let Some(until) = holds_until else { return Ok(()) };
        if seen.valid_until.is_some_and(|before| until < before) {
            return Err(Violation::Shortened(client));
        }
        if seen.valid_until.is_some_and(|before| until > before) {
            let scope = world.scope();
            let certain = scope.max_ttl().as_duration() - scope.drift().allowance(scope.max_ttl());
            let asked_at = until - certain;
            if scope.answers_come_back() && seen.another_won_at.is_some_and(|won_at| asked_at > won_at) {
                return Err(Violation::ExtendedOverAnother(client));
            }
        }
        seen.valid_until = Some(until);
        Ok(())
    }

    fn judge(&mut self, world: &World, note: &Note) -> Result<(), Violation> {
        match note {
            Note::Sent { client, command: Command::Extend { value, .. }, .. } => {
                let seen = &self.seen[*client];
                let over = seen.valid_until.is_none_or(|until| world.local(*client) >= until);
                if over || seen.lost || seen.released.as_ref() == Some(value) {
                    return Err(Violation::ExtendedAfterTheEnd(*client));
                }
            }
            Note::Sent { client, command: Command::Release { value, .. }, .. } => {
                self.seen[*client].released = Some(value.clone());
            }
            Note::Sent { client, command: Command::Propose { .. }, .. } => {
                self.seen[*client].raised_at.clear();
            }
            Note::Sent { client, node, command: Command::Raise { .. } } => {
                let raised_at = &mut self.seen[*client].raised_at;
                if raised_at.contains(node) {
                    return Err(Violation::ThirdRoundTrip(*client));
                }
                raised_at.push(*node);
            }
            Note::Granted { client, fence } => {
                let before = std::mem::replace(&mut self.fence, *fence);
                if world.scope().exclusive {
                    return if *fence > before { Ok(()) } else { Err(Violation::FenceNotAbove(*client)) };
                }
                if !self.fences.insert(*fence) {
                    return Err(Violation::SameFenceTwice(*client));
                }
            }
            Note::Told { client, notice: Notice::Won } => {
                self.seen[*client].released = None;
                for (other, seen) in self.seen.iter_mut().enumerate() {
                    if other != *client && seen.valid_until.is_some() {
                        seen.another_won_at.get_or_insert(world.local(other));
                    }
                }
            }
            Note::Told { client, notice: Notice::Lost(loss) } => {
                let seen = &mut self.seen[*client];
                seen.lost = true;
                let in_time = seen.valid_until.is_some_and(|until| world.local(*client) < until);
                if *loss == Loss::KeysGone && in_time && !world.memory_changed() {
                    return Err(Violation::LostWithoutCause(*client));
                }
            }
            Note::Woken { client } => {
                let (now, seen) = (world.local(*client), &mut self.seen[*client]);
                let due = world.claim(*client).map_or(Instant::NEVER, |claim| claim.wake_at());
                let times = if seen.woken.0 == now && due <= now { seen.woken.1 + 1 } else { 1 };
                seen.woken = (now, times);
                if times > MOST_WAKES {
                    return Err(Violation::WokenInVain(*client));
                }
                if world.ends_by(*client).is_some_and(|end| now >= end) {
                    return Err(Violation::Overdue(*client));
                }
            }
            Note::Fed { .. } | Note::Sent { .. } | Note::Told { .. } | Note::Proof { .. } => {}
        }
        Ok(())
    }
}
