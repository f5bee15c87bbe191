// The way from one queue to another of the same thread: a switch's frames, for one, go from a sender's queue into a
// receiver's. No lock and no copy: the other queue's worker is called, in the middle of ours, with its own queue.

import VirtQueue

/// A worker that other queues of its thread hand things to.
public protocol NeighbourWorker: QueueWorker, ~Copyable {
  associatedtype Parcel

  /// Something came from another queue; it is good for the length of the call. Called only while the queue is enabled,
  /// works, and is not being stopped. Chains are taken with `QueueIO.pull`: what bounds this is the giver's share.
  mutating func handed<R: VirtRing & ~Copyable>(_ parcel: borrowing Parcel, _ q: inout QueueIO<R>)
}

/// A queue as its neighbours see it. One indirect call a parcel, compiled for the queue's ring and worker.
public struct QueueDoor<Parcel> {
  /// Hands something to the queue's worker; nothing happens where it takes nothing now. On the thread of both queues, not
  /// from within a call of the same queue's worker.
  public let hand: (borrowing Parcel) -> Void

  @usableFromInline init(_ hand: @escaping (borrowing Parcel) -> Void) { self.hand = hand }
}

extension RunnerBox where R: ~Copyable, W: NeighbourWorker & ~Copyable {
  @inlinable func hand(_ parcel: borrowing W.Parcel) {
    // SAFETY: as for a turn: on the queue's thread, and no call on this runner comes back to it.
    unsafe runner.pointee.hand(parcel)
  }
}

extension QueueRunner where R: ~Copyable, W: NeighbourWorker & ~Copyable {
  @inlinable mutating func hand(_ parcel: borrowing W.Parcel) {
    guard isEnabled, !draining, io.ring.fault == nil else { return }
    worker.handed(parcel, &io)
  }
}
