// What a ring is to everything above it: both formats answer to this, so no device knows which one it serves.
// Used on the queue's thread only.

/// What a batch of completions owes the driver.
public enum Notify: Sendable {
  /// The driver asked not to be told, or there was nothing new.
  case none
  /// Write the call descriptor once.
  case call
}

/// A virtqueue seen from the device.
///
/// Requirements do not throw: a throwing requirement stays an indirect call even in specialised code. What went wrong
/// is in `fault`, and is final.
public protocol VirtRing: ~Copyable {
  /// The queue's size in descriptors; heads are below it.
  var size: UInt16 { get }
  /// How many chains have been given out and not completed.
  var liveCount: Int { get }
  /// Why the ring broke; nil while it works.
  var fault: QueueFault? { get }

  /// The next available chain: nil where there is none, where the ring is broken, or where the chains given
  /// out already hold all the room there is for segments (a completion makes room).
  mutating func next() -> Chain?
  /// Hands a chain back, with the bytes written from the start of its writable part. Seen by the driver after `publish`.
  mutating func complete(_ chain: consuming Chain, written: UInt32)
  /// The chain that was set aside under this head; nil where there is none.
  mutating func take(_ head: UInt16) -> Chain?
  /// Takes a chain back into the ring as if it had never been given out: for a queue that stops. Chains are untaken the
  /// last one first, and only by a device that completes in order.
  mutating func untake(_ chain: consuming Chain)
  /// Makes everything completed so far visible, in one step, and says whether the driver wants a call.
  mutating func publish() -> Notify

  /// Asks for a kick with the next available chain, then looks once more: true if one is there already, or if the look
  /// found a fault. The caller must not sleep then, but take another turn.
  mutating func park() -> Bool
  /// Tells the driver that kicks are not needed while we poll.
  mutating func unpark()

  /// Takes up a new memory map; chains given out finish on the old one. False, and a fault, where the ring's own areas
  /// are not in it.
  mutating func move(to map: GuestMemoryMap) -> Bool
  /// From now on writes to guest memory are noted there; nil: nowhere. When this returns nothing more is noted in the one
  /// before.
  mutating func setLog(_ log: QueueLog?)
  /// Whether what a device writes is to be told by `mark`, before its chain is completed.
  var marksBuffers: Bool { get }
  /// The first `bytes` of the chain's writable part were written.
  mutating func mark(_ chain: borrowing Chain, bytes: UInt32)
  /// A byte was written that is no longer among the chain's segments.
  mutating func mark(_ chain: borrowing Chain, byte: UnsafeMutableRawPointer)

  /// Behind an IOMMU: the next chain waits in the ring until its addresses are translated. `next` gives it only after that.
  var isWaiting: Bool { get }
  /// What it waits for; empty where that was taken before.
  mutating func takeMisses() -> [TranslationMiss]
  /// It is to be tried again: a hole in it where it needs what is denied, and another wait for what is missing still.
  mutating func retry(denied: [TranslationMiss])
  /// Whether a chain that is out may reach into a range.
  func reaches(_ range: IOVARange) -> Bool

  /// Breaks the ring.
  mutating func fail(_ fault: QueueFault)
  /// Where to resume, in the form SET_VRING_BASE and GET_VRING_BASE carry for this format.
  var base: UInt32 { get }
}
