//! One leader among several candidates: a fenced lock that its holder keeps, says that it holds, and gives up in time.

mod observer;
mod status;

use std::fmt;
use std::future::Future;
use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex as StdMutex};
use std::time::Duration;

use tokio::sync::Mutex as AsyncMutex;

pub use self::observer::{Leader, Observer};
use self::status::Standing;
pub use self::status::{ElectionStatus, Role};
use crate::clock::sleep_until;
use crate::driver::{self, Live};
use crate::error::{AcquireError, CampaignError, InspectError, ProclaimError, SettingsError};
use crate::fenced::{FencedGuard, FencedMutex};
use crate::guard::{Release, Watch};
use crate::mutex::Mutex;
use crate::node::Reply;
use crate::protocol::command::{Answer, Command, Value};
use crate::protocol::fence::Fence;
use crate::protocol::leading::{LONGEST_PROCLAMATION, Proclamation};
use crate::protocol::round::Round;
use crate::protocol::settings::{Renewal, Terms, Wishes};
use crate::protocol::time::Ttl;
use crate::protocol::wait::Backoff;
use crate::redlock::Core;
use crate::sync::lock;

/// So often a candidate that was not elected says why, and goes on.
const PATIENCE: Duration = Duration::from_secs(10);

/// An election among candidates of the same name, described: nothing is asked before a verb is awaited.
///
/// At most one candidate holds a *valid* leadership at any time, under what
/// [a lock promises](crate#what-it-promises), and each has a [term](Leadership::term) above all before it. It is never promised that only
/// one *acts*: a leader that was paused, or whose request was late on its way, may act when another leads already. What must
/// refuse that is whatever it acts on, by the term, which is a [`Fence`].
///
/// It is a [`FencedMutex`] on the resource of that name, with all of its rules: a deployment that nobody has used before needs
/// [`bootstrap`](crate::Redlock::bootstrap), or some patience. A plain mutex of that name excludes leaders, and is excluded by one.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use redlock_quorum::MemoryNodes;
///
/// let nodes = MemoryNodes::new(3);
/// let (redlock, other) = (nodes.redlock(), nodes.redlock());
/// let election = redlock.election("scheduler").candidate("host-7").lease(Duration::from_secs(10));
///
/// let leadership = election.campaign().await?; // waits until it is elected
/// leadership.proclaim("http://10.0.0.7:8080").await?;
/// println!("{}", election.status()); // "host-7 leads scheduler, ..": for a health endpoint
///
/// let leader = other.election("scheduler").leader().await?.expect("one");
/// assert_eq!((leader.candidate(), leader.term()), ("host-7", leadership.term()));
/// assert_eq!(leader.proclaimed(), "http://10.0.0.7:8080");
///
/// leadership.resign().await.ok()?; // the next candidate is woken
/// # Ok(())
/// # }
/// ```
///
/// | setting | default | |
/// |---|---|---|
/// | [`lease`](Election::lease) | the [`ttl`](crate::RedlockBuilder::ttl) of the client | how long a leader that dies blocks the others |
/// | [`renew_deadline`](Election::renew_deadline) | two thirds of the lease | how long a leader goes on that cannot renew |
/// | [`retry`](Election::retry) | a fifth of the lease | how often it renews |
/// | [`look_every`](Election::look_every) | a tenth of the lease, at most 1 s | how often an observer looks |
#[doc(alias = "LeaderElection")]
#[doc(alias = "leaderelection")]
#[doc(alias = "LeaderLatch")]
#[derive(Clone)]
pub struct Election {
    core: Arc<Core>,
    namespace: Arc<str>,
    name: Vec<u8>,
    candidate: Option<String>,
    metadata: Option<String>,
    lease: Option<Duration>,
    renew_deadline: Option<Duration>,
    retry: Option<Duration>,
    look_every: Option<Duration>,
    standing: Arc<StdMutex<Standing>>,
}

impl Election {
    pub(crate) fn new(core: Arc<Core>, namespace: Arc<str>, name: &[u8]) -> Self {
        Election {
            standing: Arc::new(StdMutex::new(Standing::idle(core.doors.clock.now()))),
            core,
            namespace,
            name: name.to_vec(),
            candidate: None,
            metadata: None,
            lease: None,
            renew_deadline: None,
            retry: None,
            look_every: None,
        }
    }

    /// Under which name this one stands: the [holder](crate::RedlockBuilder::holder) of the client by default. Without a `:`.
    #[doc(alias = "identity")]
    pub fn candidate(mut self, candidate: impl Into<String>) -> Self {
        self.candidate = Some(candidate.into());
        self
    }

    /// A text beside the candidate, for those who look on. It is what it was when it campaigned; what a leader
    /// [proclaims](Leadership::proclaim) it may change. Together with the candidate at most 512 bytes.
    pub fn metadata(mut self, metadata: impl Into<String>) -> Self {
        self.metadata = Some(metadata.into());
        self
    }

    /// How long a leader that dies blocks the others. The same for all candidates, or else each bounds only its own leadership. At
    /// most the [`max_ttl`](crate::RedlockBuilder::max_ttl).
    #[doc(alias = "LeaseDuration")]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = Some(lease);
        self
    }

    /// How long a leader goes on without a renewal, counted from when the last one that a majority confirmed was sent. Then it is
    /// told that its leadership is [lost](Leadership::lost), for good; it has the rest of the lease to stop, before which
    /// nobody else is elected.
    ///
    /// At most the lease less the drift allowance and the [margin](crate::RedlockBuilder::margin).
    #[doc(alias = "RenewDeadline")]
    pub fn renew_deadline(mut self, deadline: Duration) -> Self {
        self.renew_deadline = Some(deadline);
        self
    }

    /// How long after one renewal the next one begins. After one that failed it is tried again twelve times in a lease.
    ///
    /// At least 1 ms, and at most the renew deadline less the [node timeout](crate::RedlockBuilder::node_timeout).
    #[doc(alias = "RetryPeriod")]
    pub fn retry(mut self, retry: Duration) -> Self {
        self.retry = Some(retry);
        self
    }

    /// How often an [observer](Election::observe) looks while somebody leads: at least 1 ms. While nobody does it looks more often
    /// at first, and when a lease runs out it looks then.
    pub fn look_every(mut self, pause: Duration) -> Self {
        self.look_every = Some(pause);
        self
    }

    /// Waits until this candidate leads, as long as it takes.
    ///
    /// Candidates of one client, which is a [`Redlock`](crate::Redlock) with its clones, take turns; of several clients the one that
    /// has waited longest is woken when a leader resigns.
    ///
    /// # Errors
    ///
    /// [`CampaignError::Settings`] for settings that do not fit, before anything is sent; [`CampaignError::Closed`] after a
    /// shutdown. All else is waited for, nodes that are away too: [`status`](Election::status) says what stands in the way.
    ///
    /// # Cancel safety
    ///
    /// Dropped at any moment, the attempt is rolled back, and nobody is in the way of others.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let redlock = redlock_quorum::MemoryNodes::new(3).redlock();
    /// # async fn schedule(term: u64) {}
    /// let leadership = redlock.election("scheduler").campaign().await?;
    /// tokio::select! {
    ///     () = schedule(leadership.term().as_u64()) => {}
    ///     () = leadership.lost() => println!("stop: another may lead soon"),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "acquire")]
    pub async fn campaign(&self) -> Result<Leadership, CampaignError> {
        let Rules { wishes, .. } = self.check()?;
        let mutex = self.mutex(wishes);
        let campaign = Campaign::begin(self);
        loop {
            match mutex.acquire().await {
                Ok(guard) => return Ok(campaign.won(guard)),
                Err(AcquireError::Closed) => return Err(CampaignError::Closed),
                Err(AcquireError::Settings(error)) => return Err(error.into()),
                // Another leads: that is what a campaign is like.
                Err(AcquireError::Held(_)) => lock(&self.standing).last_error = None,
                Err(error) => lock(&self.standing).last_error = Some(error.to_string()),
            }
        }
    }

    /// Leads whenever it is elected: campaigns, calls `lead` with the leadership and runs the future that comes back, and
    /// campaigns again, until that future says [`ControlFlow::Break`].
    ///
    /// If the leadership is lost the future is dropped where it stands, which is where it awaits; tasks that it has spawned are not,
    /// unless it owns them, as with a `JoinSet`. It should keep the leadership for as long as it leads: if that is dropped or
    /// [resigned](Leadership::resign) the future goes on, and leads no more. When it is done the leadership ends, and another candidate
    /// is woken.
    ///
    /// # Errors
    ///
    /// As [`campaign`](Election::campaign).
    ///
    /// # Cancel safety
    ///
    /// Dropped, what runs is dropped, and a leadership is resigned.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let redlock = redlock_quorum::MemoryNodes::new(3).redlock();
    /// use std::ops::ControlFlow;
    ///
    /// let mut terms = 0;
    /// let election = redlock.election("scheduler");
    /// let result = election
    ///     .run(|leadership| {
    ///         terms += 1;
    ///         let is_enough = terms == 3;
    ///         async move {
    ///             println!("leading, term {}", leadership.term());
    ///             if is_enough { ControlFlow::Break("led three times") } else { ControlFlow::Continue(()) }
    ///         }
    ///     })
    ///     .await?;
    /// assert_eq!((result, terms), ("led three times", 3));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn run<B, F>(&self, mut lead: impl FnMut(Leadership) -> F) -> Result<B, CampaignError>
    where
        F: Future<Output = ControlFlow<B>>,
    {
        loop {
            let leadership = self.campaign().await?;
            let (watch, has_resigned) = (leadership.watch(), leadership.tail.has_resigned.clone());
            let led = unless_lost(&watch, &has_resigned, lead(leadership)).await;
            match led {
                Some(flow) => {
                    // Also what somebody else still has of the leadership ends here.
                    has_resigned.store(true, Ordering::Release);
                    watch.released().await;
                    if let ControlFlow::Break(result) = flow {
                        return Ok(result);
                    }
                }
                None => tracing::debug!(election = %self.name(), "campaigns again after a loss"),
            }
        }
    }

    /// Who leads now, by one look at the nodes. Takes nothing, changes nothing.
    ///
    /// # Errors
    ///
    /// [`InspectError::NoQuorum`] if too few nodes answered within the node timeout, [`InspectError::Settings`] for a name or
    /// settings that are refused.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn leader(&self) -> Result<Option<Leader>, InspectError> {
        self.observer()?.look_once().await
    }

    /// Looks on: tells who leads, and each change of that. Takes nothing, changes nothing; whoever only looks on needs no more
    /// rights than to read.
    ///
    /// # Errors
    ///
    /// If a name or a setting is refused.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let nodes = redlock_quorum::MemoryNodes::new(3);
    /// # let (redlock, other) = (nodes.redlock(), nodes.redlock());
    /// let mut observer = other.election("scheduler").observe()?;
    /// assert_eq!(observer.next().await, None); // nobody leads
    ///
    /// let leadership = redlock.election("scheduler").candidate("host-7").campaign().await?;
    /// let leader = observer.next().await.expect("somebody leads");
    /// assert_eq!((leader.candidate(), leader.term()), ("host-7", leadership.term()));
    ///
    /// leadership.resign().await.ok()?;
    /// assert_eq!(observer.next().await, None);
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "watch")]
    pub fn observe(&self) -> Result<Observer, SettingsError> {
        self.observer()
    }

    /// Where this candidate stands, for a health endpoint. Local, no IO.
    pub fn status(&self) -> ElectionStatus {
        let candidate = self.candidate.as_ref().unwrap_or(&self.core.holder);
        lock(&self.standing).status((self.name(), candidate), self.core.doors.clock.now())
    }

    fn observer(&self) -> Result<Observer, SettingsError> {
        let Rules { wishes, look_every } = self.check()?;
        let mutex = self.mutex(wishes);
        let (key, terms) = mutex.settled()?;
        Ok(Observer::new(self.core.doors.clone(), key, (terms, look_every)))
    }

    fn mutex(&self, wishes: Wishes) -> FencedMutex {
        let mutex = Mutex::new(self.core.clone(), self.namespace.clone(), &self.name);
        let mutex = mutex.wishing(wishes).wait(PATIENCE).max_waiters(usize::MAX);
        let mutex = match &self.candidate {
            Some(candidate) => mutex.held_by(candidate),
            None => mutex,
        };
        FencedMutex::new(match &self.metadata {
            Some(metadata) => mutex.metadata(metadata),
            None => mutex,
        })
    }

    /// Checks the settings against each other: `retry + node_timeout <= renew_deadline <= lease - drift - margin`.
    fn check(&self) -> Result<Rules, SettingsError> {
        let (asked, max_ttl) = (&self.core.wishes, self.core.terms.max_ttl.as_duration());
        let lease = Ttl::from_duration(self.lease.unwrap_or(asked.ttl));
        let drift = asked.drift.allowance(lease);
        let lease = lease.as_duration();
        let least = drift.saturating_add(asked.margin);
        if lease <= least || lease > max_ttl {
            let bound =
                format_args!("above drift plus margin, {least:?}, and at most the max_ttl of {max_ttl:?}");
            return Err(SettingsError::new("lease", self.lease.unwrap_or(asked.ttl), bound));
        }
        let latest = lease - least;
        let renew_deadline = self.renew_deadline.unwrap_or(latest.min(lease * 2 / 3));
        let node_timeout = asked.node_timeout.unwrap_or_else(|| Duration::from_millis(200).min(lease / 4));
        if renew_deadline <= node_timeout || renew_deadline > latest {
            let bound = format_args!(
                "above the node_timeout of {node_timeout:?} and at most {latest:?}: the lease less drift and margin"
            );
            return Err(SettingsError::new("renew_deadline", renew_deadline, bound));
        }
        let longest = renew_deadline - node_timeout;
        let retry = self.retry.unwrap_or(longest.min(lease / 5));
        if retry < Duration::from_millis(1) || retry > longest {
            let bound = format_args!(
                "at least 1ms and at most {longest:?}: the renew_deadline less the node_timeout"
            );
            return Err(SettingsError::new("retry", retry, bound));
        }
        let look_every = self.look_every.unwrap_or_else(|| (lease / 10).min(Duration::from_secs(1)));
        if look_every < Duration::from_millis(1) {
            return Err(SettingsError::new("look_every", look_every, format_args!("at least 1ms")));
        }
        let wishes = Wishes {
            ttl: lease,
            max_ttl: Some(max_ttl),
            // The loss is told when the renew deadline is over. A claim knows that as a margin before the end of its validity.
            margin: lease - drift - renew_deadline,
            node_timeout: Some(node_timeout),
            renewal: Renewal::Every(retry),
            backoff: Backoff::DEFAULT,
            // As good as none, and still said: a leader is not suspected to hang because it has led for long.
            hold_at_most: Duration::MAX - Duration::from_nanos(1),
            hold_at_least: Duration::ZERO,
            ..asked.clone()
        };
        Ok(Rules { wishes, look_every })
    }

    fn name(&self) -> String {
        String::from_utf8_lossy(&self.name).into_owned()
    }
}

impl fmt::Debug for Election {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Election").field(&self.name()).finish()
    }
}

/// Settings that agree with each other.
struct Rules {
    wishes: Wishes,
    look_every: Duration,
}

/// Runs until it is done, or the leadership is lost: then it is dropped. One that was given up is not lost.
async fn unless_lost<T>(
    watch: &Watch,
    has_resigned: &AtomicBool,
    work: impl Future<Output = T>,
) -> Option<T> {
    let mut work = pin!(work);
    tokio::select! {
        biased;
        () = watch.lost() => {}
        done = &mut work => return Some(done),
    }
    if has_resigned.load(Ordering::Acquire) { Some(work.await) } else { None }
}

/// Somebody campaigns. Dropped without having won, nobody does.
struct Campaign<'a> {
    election: &'a Election,
    is_won: bool,
}

impl<'a> Campaign<'a> {
    fn begin(election: &'a Election) -> Self {
        lock(&election.standing).campaigns(election.core.doors.clock.now());
        Campaign { election, is_won: false }
    }

    fn won(mut self, guard: FencedGuard) -> Leadership {
        self.is_won = true;
        Leadership::begin(self.election, guard)
    }
}

impl Drop for Campaign<'_> {
    fn drop(&mut self) {
        if !self.is_won {
            lock(&self.election.standing).rests(self.election.core.doors.clock.now());
        }
    }
}

/// This candidate leads, for as long as this lives and is not lost. Dropped, it resigns.
///
/// It is renewed while it lives. When no majority has confirmed a renewal for the [renew deadline](Election::renew_deadline), or a
/// majority shows that another took it away, it is lost, for good: [`lost`](Leadership::lost) completes, and
/// [`is_leader`](Leadership::is_leader) is false. That is told before the lease ends, and so before another can be elected:
/// what is left of the lease is the time in which to stop.
///
/// Dropping it sends the resignation and does not wait for it, as [with a guard](crate::Guard).
#[must_use = "a leadership that is dropped at once is resigned"]
pub struct Leadership {
    tail: Tail,
    guard: FencedGuard,
    herald: Arc<Herald>,
}

impl Leadership {
    fn begin(election: &Election, guard: FencedGuard) -> Self {
        let (term, live) = (guard.fence(), guard.live().clone());
        let watch = guard.watch_for_the_leader();
        lock(&election.standing).leads(live.now(), term, watch.clone());
        let value = live.value().expect("what is held has a value");
        let terms = guard.terms().clone();
        let herald = Arc::new(Herald { live, value, term, terms, said: AsyncMutex::default() });
        herald.begin();
        election.core.doors.runtime.spawn(herald.clone().go_on(watch));
        tracing::debug!(election = %election.name(), %term, "leads");
        let tail = Tail {
            standing: election.standing.clone(),
            term,
            has_resigned: Arc::default(),
            herald: herald.clone(),
        };
        Leadership { tail, guard, herald }
    }

    /// The term: larger than that of every leader before. Hand it to whatever the leader acts on with each request, reads
    /// included, and have that refuse a term below the largest that it has met: then a leader that does not know yet that it
    /// leads no more does no harm.
    ///
    /// It rises as long as a majority of the nodes keeps its memory; after that its order rests on the wall clocks.
    #[doc(alias = "epoch")]
    #[doc(alias = "fencing token")]
    pub fn term(&self) -> Fence {
        self.guard.fence()
    }

    /// Whether it leads at this moment: not lost, and the renew deadline not over. Local, no IO.
    ///
    /// It says nothing about the next moment.
    pub fn is_leader(&self) -> bool {
        !self.remaining().is_zero()
    }

    /// How long until it is lost if nothing is renewed: zero once it is. Local, no IO.
    pub fn remaining(&self) -> Duration {
        self.watch().remaining()
    }

    /// Completes when it is lost: the work of a leader must stop now. What is left of the lease is the time for that.
    ///
    /// # Cancel safety
    ///
    /// Safe; ask again as often as you like.
    #[doc(alias = "OnStoppedLeading")]
    pub async fn lost(&self) {
        self.guard.lost().await;
    }

    /// A view of it that can be cloned and sent to other tasks: it ends when the leadership is lost, resigned or dropped, and is
    /// valid for as long as this [leads](Leadership::is_leader).
    pub fn watch(&self) -> Watch {
        self.guard.watch_for_the_leader()
    }

    /// Publishes a text for all who [look on](Election::observe), such as the address to send requests to. It stands beside the
    /// lock, where only who holds it can write, until the leader proclaims another, and is nobody's when the leadership is over. At
    /// most 4096 bytes.
    ///
    /// Each leader proclaims its term by itself as soon as it is elected, and the text is empty then.
    ///
    /// # Errors
    ///
    /// [`ProclaimError::Lost`] if it does not lead any more; [`ProclaimError::NoQuorum`] if too few nodes answered: observers may
    /// see it all the same, now or a little later; [`ProclaimError::Settings`] for a text that is too long.
    ///
    /// # Cancel safety
    ///
    /// Dropped, the text may be proclaimed or not.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let redlock = redlock_quorum::MemoryNodes::new(3).redlock();
    /// let election = redlock.election("scheduler");
    /// let leadership = election.campaign().await?;
    /// leadership.proclaim("http://10.0.0.7:8080").await?;
    /// assert_eq!(election.leader().await?.expect("one").proclaimed(), "http://10.0.0.7:8080");
    /// # Ok(())
    /// # }
    /// ```
    pub async fn proclaim(&self, text: impl Into<String>) -> Result<(), ProclaimError> {
        let text = text.into();
        if text.len() > LONGEST_PROCLAMATION {
            let value = format!("{} bytes", text.len());
            let bound = format_args!("at most {LONGEST_PROCLAMATION} bytes");
            return Err(SettingsError::new("proclaim", value, bound).into());
        }
        if !self.is_leader() {
            return Err(ProclaimError::Lost);
        }
        let round = self.herald.proclaim(Some(text)).await;
        let quorum = self.herald.terms.quorum;
        if round.count(|answer| *answer.said() == Answer::Proclaimed) >= quorum.majority() {
            return Ok(());
        }
        let is_gone = |answer: &Answer| matches!(answer.said(), Answer::Missing | Answer::Foreign);
        if !self.is_leader() || round.count(is_gone) > quorum.spare() {
            return Err(ProclaimError::Lost);
        }
        Err(ProclaimError::NoQuorum(Box::new(round.report(&self.herald.terms))))
    }

    /// Ends it, and wakes the next candidate, which need not wait for the lease: so whatever acts for this leader must have ended
    /// before. Waits until a majority of nodes has said what became
    /// of it, at most for the node timeout.
    ///
    /// Resigning what was lost is no error: the outcome says so.
    ///
    /// # Cancel safety
    ///
    /// The resignation is sent when the future is first polled, or dropped. Dropped later, only its outcome is not heard.
    #[doc(alias = "ReleaseOnCancel")]
    #[doc(alias = "step_down")]
    pub async fn resign(self) -> Release {
        let Leadership { tail, guard, herald: _ } = self;
        drop(tail);
        guard.release().await
    }
}

impl fmt::Debug for Leadership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut leadership = f.debug_struct("Leadership");
        leadership.field("term", &self.term()).field("remaining", &self.remaining()).finish()
    }
}

/// What is to be known when a leadership ends by its own will. It stands before the guard, and so comes first.
struct Tail {
    standing: Arc<StdMutex<Standing>>,
    term: Fence,
    /// Given up, in contrast to lost.
    has_resigned: Arc<AtomicBool>,
    herald: Arc<Herald>,
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.has_resigned.store(true, Ordering::Release);
        lock(&self.standing).ends(self.herald.live.now(), self.term);
    }
}

/// Says who leads, beside the lock: again and again, since nodes come back without it.
struct Herald {
    live: Arc<Live>,
    value: Value,
    term: Fence,
    terms: Arc<Terms>,
    /// How often it has said something new, and what it says. Held while that goes out, so that it goes out in order.
    said: AsyncMutex<(u64, String)>,
}

impl Herald {
    /// Before anybody can say anything else.
    fn begin(&self) {
        let command = self.command(&(0, String::new()));
        self.live.doors.nodes.iter().for_each(|node| node.submit(command.clone(), Reply::to_nobody()));
    }

    async fn go_on(self: Arc<Self>, watch: Watch) {
        let clock = &self.live.doors.clock;
        loop {
            tokio::select! {
                biased;
                () = watch.lost() => return,
                () = sleep_until(&**clock, clock.now() + self.terms.ttl.as_duration() / 3) => {}
            }
            self.proclaim(None).await;
        }
    }

    async fn proclaim(&self, text: Option<String>) -> Round {
        let mut said = self.said.lock().await;
        if let Some(text) = text {
            *said = (said.0 + 1, text);
        }
        driver::survey(&self.live.doors, &self.terms, &self.command(&said)).await
    }

    fn command(&self, (revision, text): &(u64, String)) -> Command {
        let said = Proclamation::new(&self.value, self.term, (*revision, text));
        let (key, value, ttl) = (self.live.key().clone(), self.value.clone(), self.terms.ttl);
        Command::Proclaim { key, value, said, ttl }
    }
}
