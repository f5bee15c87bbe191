// Serves one device to one front-end after another, on a control thread of its own.

import DeviceKit
import Glibc
import HostIO
import Logging

/// Where front-ends come from.
public enum Endpoint: ~Copyable, Sendable {
  /// They connect here.
  case listener(UnixListener)
  /// One is connected already; its end is the server's.
  case connected(OwnedFD)
  /// We connect to them, again and again.
  case connecting(path: String)
}

/// A vhost-user back-end for one device. Use: `start()`; when `endDescriptor` becomes readable, or after `requestStop()`,
/// `finish()`.
public final class VhostUserServer: Sendable {
  private let host: DeviceHost
  private let endpoint: Endpoint
  private let log: Logger
  private let limiter: LogLimiter
  private let offersStatus: Bool
  private let postcopy: Postcopy?
  private let stop: EventFD
  private let ended: EventFD
  private let opening = Reply<Void>()
  private let done = Reply<Void>()
  private let channel = BackendChannel()
  private let desk: MissDesk

  /// Nothing is served before `start`. The queue threads of `host` must have been started by then. `offersStatus`: front-ends
  /// may set the device status (VHOST_USER_PROTOCOL_F_STATUS). `postcopy`: guests may come in before their memory; one for
  /// each server.
  public init(
    host: DeviceHost, endpoint: consuming Endpoint, log: Logger, offersStatus: Bool = false,
    postcopy: Postcopy? = nil
  ) throws(HostError) {
    self.host = host
    self.postcopy = postcopy
    self.offersStatus = offersStatus
    self.log = log
    limiter = LogLimiter(log)
    do throws(HostError) {
      stop = try EventFD()
      ended = try EventFD()
      desk = try MissDesk()
    } catch {
      if case .listener(let listener) = endpoint { listener.unlinkPath() }
      throw error
    }
    self.endpoint = endpoint
  }

  /// Serves from now on; where `held`, from `open` on: a sandbox closes around the thread first.
  public func start(held: Bool = false) throws(HostError) {
    if !held { open() }
    try postcopy?.start()
    _ = try PinnedThread(name: "control", cpus: []) { [self] in
      opening.wait()
      serve()
      unlinkSocket()
      postcopy?.finish()
      done.fulfil(())
      ended.signal()
    }
  }

  /// Lets a held server serve.
  public func open() { opening.fulfil(()) }

  /// Makes the socket's file a user's, where it is a file of ours: it is to be removed by that user.
  public func giveSocket(to user: UInt32) throws(HostError) {
    switch endpoint {
    case .listener(let listener): try listener.give(to: user)
    default: break
    }
  }

  /// Readable once the server has ended.
  public var endDescriptor: Int32 { ended.raw }

  /// Ends the session there is: its queues take nothing more, requests under way are finished. Returns at once.
  public func requestStop() { stop.signal() }

  /// Waits for the end.
  public func finish() { done.wait() }

  /// The device's configuration space has changed: tells the front-end, if it listens. Any thread; never blocks.
  public func configChanged() { channel.configChanged() }

  /// Leaves at once, whatever is under way; the process is to end.
  public func abandon() { unlinkSocket() }

  private func unlinkSocket() {
    switch endpoint {
    case .listener(let listener): listener.unlinkPath()
    default: break
    }
  }

  private var isStopping: Bool { Poll.one(stop.raw, .readable, milliseconds: 0).contains(.readable) }

  private func serve() {
    switch endpoint {
    case .listener(let listener): serve(listener)
    case .connected(let descriptor):
      // The endpoint keeps its descriptor; the session has one of its own.
      guard let copy = try? descriptor.duplicate() else { return }
      serve(UnixStream(adopting: copy))
      // The front-end is to see the end now, and not when this server is let go.
      _ = shutdown(descriptor.raw, Int32(SHUT_RDWR))
    case .connecting(let path): connect(to: path)
    }
  }

  private func serve(_ listener: borrowing UnixListener) {
    while !isStopping {
      let ready = Poll.any([(listener.raw, .readable), (stop.raw, .readable)], milliseconds: -1)
      if !ready[1].isEmpty { return }
      do {
        if let connection = try listener.accept() { serve(UnixStream(adopting: connection)) }
      } catch {
        // Out of descriptors or memory: the connection stays in the backlog; look again in a while.
        limiter.warning("cannot accept a connection: \(error)")
        _ = Poll.one(stop.raw, .readable, milliseconds: 500)
      }
    }
  }

  /// Tries again after 100 ms, then ever later, up to a second.
  private func connect(to path: String) {
    var pause: Int32 = 100
    var told = false
    while !isStopping {
      do {
        serve(try UnixStream(connectingTo: path))
        pause = 100
        told = false
      } catch {
        if !told { log.notice("waiting for a front-end at '\(path)': \(error)") }
        told = true
      }
      _ = Poll.one(stop.raw, .readable, milliseconds: pause)
      pause = min(1000, pause * 2)
    }
  }

  private func serve(_ stream: consuming UnixStream) {
    limiter.info("a front-end has connected")
    let session = Session(
      host: host, stream: stream, stop: stop.raw, channel: channel, desk: desk, log: log, limiter: limiter,
      offersStatus: offersStatus, postcopy: postcopy)
    switch session.run() {
    case .peerClosed: limiter.info("the front-end has left")
    case .stopped: limiter.info("the session was stopped")
    case .dropped(let reason): limiter.warning("the connection was closed: \(reason)")
    }
  }
}
