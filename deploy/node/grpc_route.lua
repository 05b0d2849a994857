-- First filter of the edge, on gRPC calls alone: route by model_name and model_version, which stand at the head of a
-- ModelInferRequest, and say the answer's status as gRPC wants it.

local function varint(text, at)
  local value, scale = 0, 1
  while true do
    local byte = text:byte(at)
    if byte == nil then return nil, at end
    at = at + 1
    value = value + (byte % 128) * scale
    if byte < 128 then return value, at end
    scale = scale * 128
    if scale > 2 ^ 35 then return nil, at end
  end
end

function envoy_on_request(handle)
  local headers = handle:headers()
  headers:remove("x-shipway-model")
  headers:remove("x-shipway-version")
  headers:replace("x-shipway-protocol", "oip_grpc")
  if headers:get(":path") ~= "/inference.GRPCInferenceService/ModelInfer" then return end
  local body = handle:body()
  if body == nil then return end
  headers = handle:headers() -- waiting for the body has invalidated the first one
  local text = body:getBytes(0, math.min(body:length(), 1024))
  local at = 6 -- behind gRPC's frame of five bytes
  while at <= #text do
    local tag = text:byte(at)
    if tag ~= 10 and tag ~= 18 then break end -- neither model_name nor model_version: the rest is not for routing
    local length
    length, at = varint(text, at + 1)
    if length == nil or at + length - 1 > #text then break end
    if length > 0 then
      local value = text:sub(at, at + length - 1)
      -- A name that cannot be one of ours must match no route, rather than fall to the default version.
      if not value:find("^[%w_-]+$") then value = "?" end
      headers:replace(tag == 10 and "x-shipway-model" or "x-shipway-version", value)
    end
    at = at + length
  end
  handle:clearRouteCache()
end

function envoy_on_response(handle)
  local headers = handle:headers()
  local status = headers:get("x-shipway-grpc-status")
  if status == nil then return end
  local message = headers:get("x-shipway-grpc-message") or ""
  headers:remove("x-shipway-grpc-status")
  headers:remove("x-shipway-grpc-message")
  -- One of Envoy's own answers from before the bridge (a body over the limit) passes it as grpc_errors.lua left it.
  local before_bridge = headers:get("content-type") == "application/x-protobuf"
  if before_bridge then headers:replace("content-type", "application/grpc") end
  if before_bridge or headers:get("grpc-status") ~= nil then
    headers:replace("grpc-status", status)
    headers:replace("grpc-message", message)
    return
  end
  for _ in handle:bodyChunks() do end
  local trailers = handle:trailers()
  if trailers ~= nil then
    trailers:replace("grpc-status", status)
    trailers:replace("grpc-message", message)
  end
end
