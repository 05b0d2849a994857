-- Behind the filter that unpacks, on gRPC calls that announce gzip alone: what grpc_route.lua could not read is read here.

function envoy_on_request(handle)
  if handle:headers():get(":path") ~= "/inference.GRPCInferenceService/ModelInfer" then return end
  if handle:headers():get("x-shipway-model") ~= nil then return end -- its message was not packed after all
  local body = handle:body()
  if body ~= nil then route_by_head(handle, body, 1) end
end
