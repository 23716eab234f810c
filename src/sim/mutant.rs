//! Mistakes, planted by name, to test the test: each is one that a published library makes or that a proof rules out, and each
//! must be caught. They are adapters around the protocol, at its doors; the protocol itself knows nothing of them.

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use super::fault::FaultClass;
use super::scope::{Scope, Sort, Weather};
use super::world::Span;
use crate::protocol::admission::{Admission, Introduction, Reason, Standing};
use crate::protocol::claim::{Action, Claim, Draw, Event, Notice, Phase};
use crate::protocol::command::{Answer, Command, Key, LeaseId, NodeIndex, Unknown, Value, Wake};
use crate::protocol::fence::Fence;
use crate::protocol::marker::{Nonce, Rules};
use crate::protocol::round::RoundId;
use crate::protocol::settings::Terms;
use crate::protocol::store::{Messenger, Store};
use crate::protocol::time::{Instant, Ttl};

/// One mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mutant {
    /// All attempts of a claim have one LeaseId.
    ReusedLeaseId,
    /// The validity is counted from when the majority was heard.
    ValidFromTheReply,
    /// The validity of an ordered attempt is counted from when the last node was asked.
    StartMovedInTheOrderedRetry,
    /// Nothing is taken off the validity for clocks.
    DriftIgnored,
    /// A majority that was heard after its validity is a lock, which looks valid for ever.
    TooLateUnnoticed,
    /// An extension that is confirmed after the end of the lease counts.
    LateExtensionCounts,
    /// A key that was set again counts in the round that set it.
    HealedCountsAtOnce,
    /// One node that lost the key is a loss.
    OneDenialIsALoss,
    /// A node that does not answer an extension has lost the key.
    SilenceIsANo,
    /// A failed extension deletes the keys.
    ReleaseOnFailedExtension,
    /// An extension sets the expiry, also to an earlier one.
    ExtensionShortens,
    /// Extensions go on after the lock is lost.
    HealAfterTheEnd,
    /// An extension follows the release.
    ExtensionAfterTheRelease,
    /// Half of the nodes are a majority.
    HalfIsAMajority,
    /// A majority of the nodes that can be reached is enough.
    ReachableNodesCount,
    /// An attempt waits for all nodes.
    AllMustAnswer,
    /// A failed attempt leaves its keys.
    NoRollback,
    /// The roll-back leaves out nodes that have not answered.
    RollbackSkipsSilentNodes,
    /// A dropped attempt leaves its keys.
    DroppedWithoutRollback,
    /// A release deletes the key, whoever's it is.
    ReleaseWithoutComparison,
    /// A key is set, whether or not it is there.
    SetWithoutNx,
    /// What was not answered is sent again on the next connection.
    TransportResends,
    /// The client's clock stands still while it does.
    ClockStopsInAPause,
    /// Two of the nodes are one server.
    SameServerTwice,
    /// A node that restarted votes at once.
    RestartedNodeVotes,
    /// A node that waits is counted all the same.
    WaitingNodeCounts,
    /// The age of a process is taken for more exact than it is.
    UptimeTakenAsExact,
    /// The age of a promoted replica is taken for the age of its memory.
    PromotedReplicaIsOld,
    /// The age of whoever answers now is taken for the age of the memory at this address.
    ChangeIsJudgedByAge,
    /// Who waits for a message does not look by itself.
    MessagesAreTrusted,
    /// The message of one node is as good as those of a majority, also to who was woken in vain before.
    OneMessageIsEnough,
    /// Every node counts on its own, and the largest count of a majority is the fence.
    MaximumOfCounters,
    /// A fence above all counters of a majority is written back to any majority.
    WriteBackToAnyMajority,
    /// A fence is raised at any node, whosever key stands there.
    RaiseWithoutTheKey,
    /// A fence that was proposed is taken for accepted where the key is granted.
    VotedCountsAsAccepted,
    /// What a node that does not count is asked counts.
    UnenrolledNodeCounts,
    /// A node that forgot something counts before the longest ttl has passed.
    EnrolledWithoutWait,
    /// A node that forgot something is not told how far the fences are.
    EnrolledWithoutSeed,
    /// A node that forgot something is told how far the fences were when it was first looked at.
    SeededBeforeTheWait,
    /// A node that has forgotten under which nonce it was observed is observed under it again.
    ForgottenNonceComesBack,
    /// A counter that a node has restored wins over what the other nodes have told it.
    RestoredCounterWins,
    /// A key that was set counts as standing from before that was heard.
    ProvenBeforeItWasHeard,
    /// A heal that was not answered counts as not carried out.
    UnheardHealIgnored,
    /// A healed key counts as standing from when its round was won, also if it was heard later.
    HealedProvesWithItsRound,
    /// A key that stands before and after a node forgot something counts as standing in between.
    IncarnationsBridged,
    /// A key that was found counts as standing until that was heard.
    ProvenUntilItWasHeard,
    /// Fewer nodes than a majority prove a hold.
    FewerThanAMajorityProve,
}

impl Mutant {
    /// All of them that chance finds. [`IncarnationsBridged`](Mutant::IncarnationsBridged) takes more of it than there is.
    pub const ALL: [Mutant; 46] = [
        Mutant::ReusedLeaseId,
        Mutant::ValidFromTheReply,
        Mutant::StartMovedInTheOrderedRetry,
        Mutant::DriftIgnored,
        Mutant::TooLateUnnoticed,
        Mutant::LateExtensionCounts,
        Mutant::HealedCountsAtOnce,
        Mutant::OneDenialIsALoss,
        Mutant::SilenceIsANo,
        Mutant::ReleaseOnFailedExtension,
        Mutant::ExtensionShortens,
        Mutant::HealAfterTheEnd,
        Mutant::ExtensionAfterTheRelease,
        Mutant::HalfIsAMajority,
        Mutant::ReachableNodesCount,
        Mutant::AllMustAnswer,
        Mutant::NoRollback,
        Mutant::RollbackSkipsSilentNodes,
        Mutant::DroppedWithoutRollback,
        Mutant::ReleaseWithoutComparison,
        Mutant::SetWithoutNx,
        Mutant::TransportResends,
        Mutant::ClockStopsInAPause,
        Mutant::SameServerTwice,
        Mutant::RestartedNodeVotes,
        Mutant::WaitingNodeCounts,
        Mutant::UptimeTakenAsExact,
        Mutant::PromotedReplicaIsOld,
        Mutant::ChangeIsJudgedByAge,
        Mutant::MessagesAreTrusted,
        Mutant::OneMessageIsEnough,
        Mutant::MaximumOfCounters,
        Mutant::WriteBackToAnyMajority,
        Mutant::RaiseWithoutTheKey,
        Mutant::VotedCountsAsAccepted,
        Mutant::UnenrolledNodeCounts,
        Mutant::EnrolledWithoutWait,
        Mutant::EnrolledWithoutSeed,
        Mutant::SeededBeforeTheWait,
        Mutant::ForgottenNonceComesBack,
        Mutant::RestoredCounterWins,
        Mutant::ProvenBeforeItWasHeard,
        Mutant::UnheardHealIgnored,
        Mutant::HealedProvesWithItsRound,
        Mutant::ProvenUntilItWasHeard,
        Mutant::FewerThanAMajorityProve,
    ];

    /// Whether it is one of locks that come with fences.
    pub fn is_of_fences(self) -> bool {
        matches!(
            self,
            Mutant::MaximumOfCounters
                | Mutant::WriteBackToAnyMajority
                | Mutant::RaiseWithoutTheKey
                | Mutant::VotedCountsAsAccepted
                | Mutant::UnenrolledNodeCounts
                | Mutant::EnrolledWithoutWait
                | Mutant::EnrolledWithoutSeed
                | Mutant::SeededBeforeTheWait
                | Mutant::ForgottenNonceComesBack
                | Mutant::RestoredCounterWins
        )
    }

    /// Whether it is one of how a hold is proven. The claim is right; who reads its evidence is not.
    pub fn is_of_proofs(self) -> bool {
        matches!(
            self,
            Mutant::ProvenBeforeItWasHeard
                | Mutant::UnheardHealIgnored
                | Mutant::HealedProvesWithItsRound
                | Mutant::IncarnationsBridged
                | Mutant::ProvenUntilItWasHeard
                | Mutant::FewerThanAMajorityProve
        )
    }

    fn raises_everywhere(self) -> bool {
        matches!(self, Mutant::WriteBackToAnyMajority | Mutant::RaiseWithoutTheKey)
    }

    /// How much too early a client believes that a node has waited.
    pub(super) fn hurry(self, scope: &Scope) -> Duration {
        match self {
            Mutant::EnrolledWithoutWait => scope.max_ttl().as_duration() * 2,
            _ => Duration::ZERO,
        }
    }

    /// The fence that whoever waits for a claim believes to have got.
    pub(super) fn believed_fence(self, told: Option<Fence>, quirk: &Quirk) -> Option<Fence> {
        match self {
            Mutant::MaximumOfCounters => quirk.attempt.as_ref().map(|asked| asked.highest),
            _ => told,
        }
    }

    /// The number of nodes with which it shows, if not with any.
    pub(super) fn nodes(self) -> Option<usize> {
        match self {
            Mutant::HalfIsAMajority => Some(4),
            Mutant::SameServerTwice => Some(3),
            _ if self.is_of_fences() || self.is_of_proofs() => Some(3),
            _ => None,
        }
    }

    /// The faults among which it shows.
    pub fn kinds(self) -> &'static [FaultClass] {
        match self {
            // Safe as long as nobody deletes the keys of another.
            Mutant::HealedCountsAtOnce => &[FaultClass::Deletions, FaultClass::Pauses, FaultClass::Stalls],
            _ if self.is_of_fences() => &FaultClass::HARMLESS_TO_STRICT_KINDS,
            _ if self.is_of_proofs() => &[],
            _ => &FaultClass::HARMLESS,
        }
    }

    /// Makes the circumstances likely in which it shows.
    pub(super) fn tune(self, scope: &mut Scope) {
        match self {
            // It shows when a lock that was won in order is kept to its last moment.
            Mutant::StartMovedInTheOrderedRetry => scope.keep_to_the_end(),
            // Two clients hold when an operator deletes the lock. That it does not come back is another matter.
            Mutant::HealedCountsAtOnce => scope.exclusive = false,
            // It shows when a node restarts empty and is then met for the first time, less than a ttl later.
            Mutant::UptimeTakenAsExact => {
                scope.keep_to_the_end();
                scope.strangers = true;
                scope.most_faults = 2;
                (scope.weather.faults, scope.weather.dial) = (vec![(FaultClass::Amnesia, 3)], 3);
            }
            // They show when somebody is behind and raises a fence while others propose, and a command is lost on its way.
            // It shows when a lock is won by a vote from before the restart, and is kept for longer than the node waits.
            Mutant::SeededBeforeTheWait => {
                for wish in &mut scope.wishes {
                    let node_timeout = wish.terms.ttl.as_duration();
                    wish.terms = Arc::new(Terms { node_timeout, ..(*wish.terms).clone() });
                    // Who waits learns how far the fences are.
                    wish.wait = None;
                }
                scope.clients = 2;
                let wall_clocks = [300_000_000, 0].into();
                scope.sort = Sort::Fenced { wall_clocks, high_waters: Vec::new(), remembers: false };
                scope.most_faults = 1;
                scope.weather = Weather {
                    spans: vec![(Span::UntilDue, 1)],
                    begin: 1,
                    wake: 500,
                    take: 500,
                    release: 1,
                    dial: 200,
                    arrive: 5,
                    hear: 50,
                    mending: 200,
                    faults: vec![(FaultClass::Amnesia, 1)],
                    ..Weather::default()
                };
            }
            // It shows when a node forgets twice, and of two that let it count the first time one is late.
            Mutant::ForgottenNonceComesBack => {
                scope.keep_to_the_end();
                scope.most_faults = 10;
                scope.weather.faults = vec![(FaultClass::Flushes, 3), (FaultClass::Pauses, 1)];
            }
            Mutant::IncarnationsBridged => scope.take_keys_away_and_bring_them_back(),
            Mutant::UnheardHealIgnored => scope.take_keys_and_answers_away(),
            _ if self.is_of_proofs() => scope.take_keys_away(),
            _ if self.raises_everywhere() => {
                scope.clients = 4;
                let wall_clocks = [0, 300_000_000, 300_000_000, 300_000_000].into();
                let high_waters = vec![0, 2_000_000_000, 0];
                scope.sort = Sort::Fenced { wall_clocks, high_waters, remembers: false };
                scope.most_faults = 0;
                scope.weather = Weather {
                    spans: vec![(Span::Micros(100), 20), (Span::UntilDue, 5)],
                    begin: 20,
                    wake: 200,
                    take: 1_000,
                    release: 50,
                    dial: 100,
                    breaks: 5,
                    arrive: 40,
                    hear: 60,
                    late: 1,
                    ..Weather::default()
                };
            }
            _ => {}
        }
    }

    /// Whether a claim that is due may stay so.
    pub(super) fn oversleeps(self) -> bool {
        self == Mutant::LateExtensionCounts
    }

    /// Whether a claim that waits for a message has no other reason to wake up.
    pub(super) fn waits_for_ever(self, claim: &Claim) -> bool {
        self == Mutant::MessagesAreTrusted && claim.state() == "Waiting"
    }

    pub(super) fn distort_draw(self, draw: Draw, quirk: &mut Quirk) -> Draw {
        match self {
            Mutant::ReusedLeaseId => Draw { lease_id: *quirk.first_id.get_or_insert(draw.lease_id), ..draw },
            _ => draw,
        }
    }

    /// Changes what a claim hears, when it believes to hear it, and what it hears beside it. False if it hears nothing.
    pub(super) fn distort_event(
        self,
        event: &mut Event,
        now: &mut Instant,
        claim: &Claim,
        quirk: &mut Quirk,
        mail: &mut VecDeque<Event>,
    ) -> bool {
        let incarnation = take_incarnation(event);
        let is_heard = self.distort_what_is_said(event, now, claim, quirk, mail);
        if let (Some(incarnation), Event::Answer { answer, .. }) = (incarnation, event)
            && !answer.is_silence()
        {
            *answer = answer.clone().counting_in(incarnation);
        }
        is_heard
    }

    fn distort_what_is_said(
        self,
        event: &mut Event,
        now: &mut Instant,
        claim: &Claim,
        quirk: &mut Quirk,
        mail: &mut VecDeque<Event>,
    ) -> bool {
        match event {
            Event::Tick => !self.sleeps(claim, quirk),
            Event::Woken { node } => {
                let waits = claim.state() == "Waiting" && mail.is_empty();
                if self == Mutant::OneMessageIsEnough && waits {
                    let node = *node;
                    let others = (0..quirk.nodes).filter(|other| *other != node);
                    mail.extend(others.map(|node| Event::Woken { node }));
                }
                true
            }
            Event::Answer { round, node, answer } => {
                let (round, node) = (*round, *node);
                quirk.hear(round, node, answer);
                let to_all_others = |answer: Answer| {
                    let others = (0..quirk.nodes).filter(move |other| *other != node);
                    others.map(move |node| Event::Answer { round, node, answer: answer.clone() })
                };
                let extension = quirk.extension.as_ref().filter(|asked| asked.round == round);
                let attempt = quirk.attempt.as_ref().filter(|asked| asked.round == round);
                match self {
                    Mutant::AllMustAnswer if attempt.is_some_and(|asked| !asked.silent.is_empty()) => {
                        quirk.kept_back.push(event.clone());
                        return false;
                    }
                    Mutant::AllMustAnswer => mail.extend(quirk.kept_back.drain(..)),
                    Mutant::TooLateUnnoticed => *now = attempt.map_or(*now, |asked| asked.first_sent_at),
                    Mutant::LateExtensionCounts => *now = extension.map_or(*now, |asked| asked.first_sent_at),
                    Mutant::HealedCountsAtOnce if *answer == Answer::Healed => *answer = Answer::Present,
                    Mutant::WaitingNodeCounts | Mutant::UnenrolledNodeCounts => {
                        *answer = answer.said().clone();
                    }
                    Mutant::MaximumOfCounters | Mutant::VotedCountsAsAccepted => {
                        if let Answer::Voted(_) = answer {
                            *answer = Answer::Accepted;
                        }
                    }
                    _ if self.raises_everywhere()
                        && *answer == Answer::Raised
                        && claim.phase() != Phase::Claiming =>
                    {
                        return false;
                    }
                    _ if self.raises_everywhere()
                        && attempt.is_some_and(|asked| asked.raised == quirk.nodes / 2 + 1) =>
                    {
                        mail.extend(to_all_others(Answer::Raised));
                    }
                    Mutant::SilenceIsANo if extension.is_some() && answer.is_silence() => {
                        *answer = Answer::Foreign;
                    }
                    Mutant::OneDenialIsALoss if extension.is_some_and(|asked| asked.denied == 1) => {
                        mail.extend(to_all_others(Answer::Foreign));
                    }
                    Mutant::HalfIsAMajority
                        if attempt.is_some_and(|asked| 2 * asked.granted == quirk.nodes) =>
                    {
                        mail.extend(to_all_others(Answer::Granted));
                    }
                    Mutant::ReachableNodesCount if attempt.is_some_and(Asked::is_won_among_the_reachable) => {
                        mail.extend(to_all_others(Answer::Granted));
                    }
                    _ => {}
                }
                true
            }
            _ => true,
        }
    }

    /// Whether a claim that is due is not woken.
    fn sleeps(self, claim: &Claim, quirk: &Quirk) -> bool {
        let open = |asked: &Option<Asked>| asked.as_ref().is_some_and(|asked| !asked.silent.is_empty());
        match self {
            Mutant::AllMustAnswer => claim.phase() == Phase::Claiming && open(&quirk.attempt),
            Mutant::LateExtensionCounts => claim.phase() == Phase::Held && open(&quirk.extension),
            _ => false,
        }
    }

    /// Changes what a claim does.
    pub(super) fn distort_actions(
        self,
        actions: &mut Vec<Action>,
        claim: &Claim,
        quirk: &mut Quirk,
        now: Instant,
        scope: &Scope,
    ) {
        quirk.nodes = scope.nodes;
        actions.iter().for_each(|action| quirk.see(action, now));
        let is_release =
            |action: &Action| matches!(action, Action::Send { command: Command::Release { .. }, .. });
        let extend = |(key, value)| Command::Extend {
            key,
            value,
            ttl: scope.max_ttl(),
            heal: true,
            rules: Rules::Plain,
        };
        let owed_for = scope.max_ttl().as_duration();
        let release = |(key, value)| {
            let (linger, wake, rules) = (Ttl::ZERO, Wake::Next, Rules::Plain);
            Command::Release { key, value, linger, owed_for, wake, rules }
        };
        match self {
            Mutant::NoRollback if quirk.won_at.is_none() => actions.retain(|action| !is_release(action)),
            Mutant::DroppedWithoutRollback if quirk.won_at.is_none() && claim.phase() == Phase::Over => {
                actions.retain(|action| !is_release(action));
            }
            Mutant::RollbackSkipsSilentNodes => {
                let silent = quirk.attempt.as_ref().map(|asked| asked.silent.clone()).unwrap_or_default();
                actions.retain(|action| match action {
                    Action::Send { node, .. } => !(is_release(action) && silent.contains(node)),
                    _ => true,
                });
            }
            Mutant::ReleaseOnFailedExtension => {
                let failed = quirk.extension.as_ref().filter(|asked| asked.unknown > scope.nodes / 2);
                if failed.is_some() {
                    actions.extend(quirk.to_all(release));
                    quirk.extension = None;
                }
            }
            Mutant::HealAfterTheEnd
                if actions.iter().any(|action| matches!(action, Action::Tell(Notice::Lost(_)))) =>
            {
                actions.extend(quirk.to_all(extend));
            }
            _ if self.raises_everywhere() => quirk.raise_everywhere(actions),
            Mutant::ExtensionAfterTheRelease if quirk.won_at.is_some() && actions.iter().any(is_release) => {
                actions.extend(quirk.to_all(extend));
            }
            _ => {}
        }
    }

    /// Until when whoever waits for a claim believes that it holds.
    pub(super) fn believes_until(self, claim: &Claim, quirk: &Quirk, scope: &Scope) -> Option<Instant> {
        let told = claim.valid_until().filter(|_| claim.phase() == Phase::Held);
        let (Some(won_at), Some(attempt)) = (quirk.won_at, &quirk.attempt) else { return told };
        let ttl = attempt.ttl.as_duration();
        let certain = ttl.saturating_sub(scope.drift().allowance(attempt.ttl));
        match self {
            _ if claim.phase() == Phase::Over => None,
            Mutant::ValidFromTheReply => told.max(Some(won_at + certain)),
            Mutant::StartMovedInTheOrderedRetry => told.max(Some(attempt.last_sent_at + certain)),
            Mutant::DriftIgnored => told.max(Some(attempt.first_sent_at + ttl)),
            Mutant::TooLateUnnoticed if won_at >= attempt.first_sent_at + certain => Some(Instant::NEVER),
            _ => told,
        }
    }

    pub(super) fn admit(
        self,
        admission: &mut Admission,
        now: Instant,
        introduction: &Introduction,
    ) -> Standing {
        let mut introduction = introduction.clone();
        match self {
            Mutant::RestartedNodeVotes => return Standing { counts_from: now, reason: Reason::Known },
            Mutant::UptimeTakenAsExact => introduction.uptime += Duration::from_secs(1),
            Mutant::PromotedReplicaIsOld => {
                introduction.always_master = true;
                *admission = admission.forgetting();
            }
            Mutant::ChangeIsJudgedByAge => *admission = admission.forgetting(),
            _ => {}
        }
        admission.admit(now, Some(&introduction), false)
    }

    /// The server behind a node.
    pub(super) fn server_behind(self, node: NodeIndex) -> NodeIndex {
        if self == Mutant::SameServerTwice && node == 1 { 0 } else { node }
    }

    /// What a node does.
    pub(super) fn carry_out(
        self,
        store: &mut Store,
        time: Instant,
        command: &Command,
        messenger: &mut dyn Messenger,
    ) -> Answer {
        match (self, command) {
            (Mutant::ExtensionShortens, Command::Extend { key, value, ttl, .. }) => {
                let answer = store.apply(time, command, messenger);
                if answer == Answer::Present {
                    store.put(time, key, value, ttl.as_duration());
                }
                answer
            }
            (Mutant::ReleaseWithoutComparison, Command::Release { key, .. }) => {
                if store.remove(time, key) {
                    Answer::Deleted { others_wait: false }
                } else {
                    Answer::Missing
                }
            }
            (Mutant::MaximumOfCounters, Command::Propose { key, value, ttl, pact, .. }) => {
                let fence = store.counters(time, key).0.next();
                let (key, value) = (key.clone(), value.clone());
                let command = Command::Propose { key, value, ttl: *ttl, fence, pact: *pact };
                instead(store.apply(time, &command, messenger), |said| match said {
                    Answer::Accepted => Answer::Voted(fence),
                    other => other,
                })
            }
            (Mutant::WriteBackToAnyMajority, Command::Propose { key, value, ttl, pact, .. }) => {
                let (key, value, fence) = (key.clone(), value.clone(), Fence::NONE);
                store.apply(time, &Command::Propose { key, value, ttl: *ttl, fence, pact: *pact }, messenger)
            }
            (_, Command::Raise { key, fence, .. }) if self.raises_everywhere() => {
                let counter = store.counters(time, key).0;
                instead(store.apply(time, command, messenger), |said| match said {
                    Answer::Foreign | Answer::Missing if *fence > counter => {
                        store.accept_anyway(time, key, *fence);
                        Answer::Raised
                    }
                    other => other,
                })
            }
            (Mutant::RestoredCounterWins, Command::Propose { key, fence, .. }) => {
                let (_, own) = store.counters(time, key);
                instead(store.apply(time, command, messenger), |said| match said {
                    Answer::Voted(_) if own.is_some_and(|own| *fence > own) => {
                        store.accept_anyway(time, key, *fence);
                        Answer::Accepted
                    }
                    other => other,
                })
            }
            (Mutant::SetWithoutNx, Command::Acquire { key, value, ttl }) => {
                store.put(time, key, value, ttl.as_duration());
                Answer::Granted
            }
            _ => store.apply(time, command, messenger),
        }
    }

    /// Whether a node does something else than servers do.
    pub(super) fn changes_nodes(self) -> bool {
        self.raises_everywhere()
            || matches!(
                self,
                Mutant::ExtensionShortens | Mutant::ReleaseWithoutComparison | Mutant::SetWithoutNx
            )
    }

    /// What a transport sends again on a new connection, of what was not answered on the old one.
    pub(super) fn sends_again(self, command: &Command) -> bool {
        self == Mutant::TransportResends && matches!(command, Command::Acquire { .. })
    }

    pub(super) fn clock_stops_in_a_pause(self) -> bool {
        self == Mutant::ClockStopsInAPause
    }
}

/// What a node says otherwise, if it counts.
fn instead(answer: Answer, change: impl FnOnce(Answer) -> Answer) -> Answer {
    match answer.and_incarnation() {
        (said, Some(incarnation)) => change(said).counting_in(incarnation),
        (said, None) => change(said),
    }
}

fn take_incarnation(event: &mut Event) -> Option<Nonce> {
    let Event::Answer { answer, .. } = event else { return None };
    let (said, incarnation) = answer.clone().and_incarnation();
    *answer = said;
    incarnation
}

/// What a mutant remembers of a client's claim.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Quirk {
    nodes: usize,
    first_id: Option<LeaseId>,
    /// The last attempt, and the last extension.
    attempt: Option<Asked>,
    extension: Option<Asked>,
    won_at: Option<Instant>,
    kept_back: Vec<Event>,
    raised_in: Option<RoundId>,
}

/// A round of writes.
#[derive(Clone, Debug, Hash)]
struct Asked {
    round: RoundId,
    key: Key,
    value: Value,
    /// Zero for an extension.
    ttl: Ttl,
    first_sent_at: Instant,
    last_sent_at: Instant,
    silent: Vec<NodeIndex>,
    /// Of so many nodes.
    nodes: usize,
    granted: usize,
    denied: usize,
    unknown: usize,
    unreachable: usize,
    /// The largest counter that was heard, and at how many nodes a fence was raised.
    highest: Fence,
    raised: usize,
}

impl Quirk {
    /// A new claim begins.
    pub(super) fn begin(&mut self) {
        *self = Quirk::default();
    }

    /// What tells two apart that are whosever: as of [`Claim::hash_by_node`].
    pub(super) fn hash_by_node<H: Hasher>(&self, all: &mut H, each: &mut [H]) {
        let Quirk { nodes, first_id: _, attempt, extension, won_at, kept_back, raised_in } = self;
        (nodes, won_at, raised_in).hash(all);
        for asked in [attempt, extension] {
            asked.is_some().hash(all);
            asked.iter().for_each(|asked| asked.hash_by_node(all, each));
        }
        for event in kept_back {
            match event {
                Event::Answer { round, node, answer } => (round, answer).hash(&mut each[*node]),
                event => event.hash(all),
            }
        }
    }

    fn see(&mut self, action: &Action, now: Instant) {
        match action {
            Action::Send { node, round, command: Command::Acquire { key, value, ttl } } => {
                Asked::note(&mut self.attempt, (*round, *node), (key, value, *ttl), now);
            }
            Action::Send { node, round, command: Command::Propose { key, value, ttl, .. } } => {
                Asked::note(&mut self.attempt, (*round, *node), (key, value, *ttl), now);
            }
            Action::Send { node, round, command: Command::Extend { key, value, .. } } => {
                Asked::note(&mut self.extension, (*round, *node), (key, value, Ttl::ZERO), now);
            }
            Action::Tell(Notice::Won) => self.won_at = Some(now),
            _ => {}
        }
    }

    fn hear(&mut self, round: RoundId, node: NodeIndex, answer: &Answer) {
        let asked = self.attempt.iter_mut().chain(&mut self.extension).find(|asked| asked.round == round);
        let Some(asked) = asked else { return };
        asked.nodes = self.nodes;
        asked.silent.retain(|silent| *silent != node);
        match answer {
            Answer::Granted | Answer::Accepted => asked.granted += 1,
            Answer::Voted(counter) => asked.highest = asked.highest.max(*counter),
            Answer::Raised => asked.raised += 1,
            Answer::Foreign | Answer::Healed => asked.denied += 1,
            Answer::Unknown(unknown) => {
                asked.unknown += 1;
                asked.unreachable += usize::from(*unknown == Unknown::NotConnected);
            }
            _ => {}
        }
    }

    /// Where one fence is raised first, it is raised everywhere; later nowhere again.
    fn raise_everywhere(&mut self, actions: &mut Vec<Action>) {
        let is_raise =
            |action: &Action| matches!(action, Action::Send { command: Command::Raise { .. }, .. });
        let Some(Action::Send { round, command, .. }) =
            actions.iter().find(|action| is_raise(action)).cloned()
        else {
            return;
        };
        actions.retain(|action| !is_raise(action));
        if self.raised_in.replace(round) != Some(round) {
            let send = |node| Action::Send { node, round, command: command.clone() };
            actions.extend((0..self.nodes).map(send));
        }
    }

    fn to_all(&self, command: impl Fn((Key, Value)) -> Command) -> Vec<Action> {
        let Some(Asked { key, value, round, .. }) = &self.attempt else { return Vec::new() };
        let send = |node| {
            let command = command((key.clone(), value.clone()));
            // Of a round that nobody listens to.
            Action::Send { node, round: RoundId(round.0 + 1_000_000), command }
        };
        (0..self.nodes).map(send).collect()
    }
}

impl Asked {
    fn hash_by_node<H: Hasher>(&self, all: &mut H, each: &mut [H]) {
        let Asked { round, key: _, value: _, ttl, first_sent_at, last_sent_at, silent, .. } = self;
        (round, ttl, first_sent_at, last_sent_at).hash(all);
        silent.iter().for_each(|node| "silent".hash(&mut each[*node]));
        let Asked { nodes, granted, denied, unknown, unreachable, highest, raised, .. } = self;
        (nodes, granted, denied, unknown, unreachable, highest, raised).hash(all);
    }

    fn is_won_among_the_reachable(&self) -> bool {
        self.granted == self.nodes.saturating_sub(self.unreachable) / 2 + 1
    }

    fn note(
        last: &mut Option<Asked>,
        (round, node): (RoundId, NodeIndex),
        (key, value, ttl): (&Key, &Value, Ttl),
        now: Instant,
    ) {
        let known = last.take().filter(|asked| asked.round == round);
        let mut asked = known.unwrap_or_else(|| Asked {
            round,
            key: key.clone(),
            value: value.clone(),
            ttl,
            first_sent_at: now,
            last_sent_at: now,
            silent: Vec::new(),
            nodes: 0,
            granted: 0,
            denied: 0,
            unknown: 0,
            unreachable: 0,
            highest: Fence::NONE,
            raised: 0,
        });
        asked.last_sent_at = now;
        asked.silent.push(node);
        *last = Some(asked);
    }
}
