// The broker itself: one container app, in the resource group that main.bicep made. Deployed anew for each release.
// azd deploys this file by its name (service `broker`) with broker.parameters.json, once the image is pushed.
//
//   az deployment group create --resource-group rg-<environmentName> --template-file infra/broker.bicep
//     --parameters infra/parameters/dev.broker.bicepparam --parameters image=<registry>/token-broker:<tag>
targetScope = 'resourceGroup'

metadata description = 'The voice token broker on Azure Container Apps'

@description('Image to run, with its tag or, better, its digest.')
@minLength(3)
param image string

@description('Region of the Container Apps environment.')
param location string = resourceGroup().location

@description('Name of the environment that main.bicep was given; azd finds the app by it.')
@minLength(2)
@maxLength(32)
param environmentName string

@description('Who may ask for tokens. easyauth also turns platform authentication on, the others turn it off: the two are never apart.')
@allowed([
  'none'
  'easyauth'
  'entra'
])
param brokerAuth string

@description('With easyauth: client id of the app registration that signs users in.')
param easyAuthClientId string = ''

@description('With easyauth and entra: the tenant whose users are let in.')
param entraTenantId string = tenant().tenantId

@description('With entra: the audience that JWTs must have, such as api://<client id>.')
param entraAudience string = ''

@description('With entra: the scope or app role that JWTs must carry too. Empty asks for none; then the app registration should say who is assigned.')
param entraRequiredScope string = ''

@description('IPv4 ranges that may reach the broker, such as 203.0.113.9/32, separated by commas; empty means everywhere. With brokerAuth none, empty (or a range of everywhere) makes the ingress internal: nobody outside the environment reaches it.')
param allowedAddresses string = ''

@description('Region of the voice resource; as main.bicep was told. With several resources it is the resource\'s name, too.')
@allowed([
  'canadacentral'
  'centralus'
  'eastus2'
  'francecentral'
  'swedencentral'
  'southindia'
])
param voiceLocation string = 'eastus2'

@description('Whether there is a second voice resource; as main.bicep was told. none: there is none. standby: it is asked where the first one fails or is full. shared: both take talks alike.')
@allowed([
  'none'
  'standby'
  'shared'
])
param secondVoice string = 'none'

@description('Region of the second voice resource; as main.bicep was told.')
@allowed([
  'canadacentral'
  'centralus'
  'eastus2'
  'francecentral'
  'swedencentral'
  'southindia'
])
param secondVoiceLocation string = 'centralus'

@description('Further voice resources, made elsewhere: tables [[resources]] of a resources file, as docs/api.md says. The broker\'s identity needs its roles on them.')
param moreResources string = ''

@description('New Voice Live connections a minute that each of the two voice resources takes; beyond them the other one is asked before Azure refuses. 0: not known.')
@minValue(0)
@maxValue(100000)
param voiceLivePerMinute int = 0

@description('How the broker proves itself to the voice resources; as main.bicep was told.')
@allowed([
  'key'
  'entra'
])
param voiceAuthentication string = 'key'

@description('Where turns are kept; as main.bicep was told. sqlite means one replica.')
@allowed([
  'postgresql'
  'sqlite'
])
param store string = 'postgresql'

@description('Where else turns go; zep and zep_cloud want main.bicep to have been given zepApiKey.')
@allowed([
  'local'
  'zep'
  'zep_cloud'
])
param memory string = 'local'

@description('Zep\'s base URL where it is not the cloud.')
param zepApiUrl string = ''

@description('Realtime deployment.')
param realtimeDeployment string = 'gpt-realtime'

@description('Transcription deployment.')
param transcriptionDeployment string = 'gpt-4o-mini-transcribe'

@description('AI Foundry project, if there is one.')
param projectName string = ''

@description('api-version of the flat mints and of Voice Live.')
param voiceApiVersion string = '2025-10-01'

@description('URL that browsers reach the broker by, for a custom domain; empty means the app\'s own name.')
param publicUrl string = ''

@description('Origins of other sites that may embed the client, separated by commas; empty means the broker\'s own pages alone.')
param allowedOrigins string = ''

@description('Replicas at least; two survive the loss of one.')
@minValue(1)
@maxValue(1000)
param minReplicas int = 2

@description('Replicas at most.')
@minValue(1)
@maxValue(1000)
param maxReplicas int = 10

@description('CPU cores of a replica; the relay uses one at most.')
@allowed([
  '0.25'
  '0.5'
  '1.0'
])
param cpu string = '0.5'

@description('Talks that a replica is meant to carry: beyond it another replica starts, at twice the number newcomers are refused.')
@minValue(10)
@maxValue(2000)
param talksPerReplica int = 150

@description('Grace for running talks when a replica is told to stop; what is left then is asked to move on.')
@minValue(0)
@maxValue(590)
param drainSeconds int = 120

module backend 'modules/backend-aca.bicep' = {
  params: {
    location: location
    environmentName: environmentName
    image: image
    brokerAuth: brokerAuth
    easyAuthClientId: easyAuthClientId
    entraTenantId: entraTenantId
    entraAudience: entraAudience
    entraRequiredScope: entraRequiredScope
    allowedAddresses: allowedAddresses
    voiceLocation: voiceLocation
    secondVoice: secondVoice
    secondVoiceLocation: secondVoiceLocation
    moreResources: moreResources
    voiceLivePerMinute: voiceLivePerMinute
    voiceAuthentication: voiceAuthentication
    store: store
    memory: memory
    zepApiUrl: zepApiUrl
    realtimeDeployment: realtimeDeployment
    transcriptionDeployment: transcriptionDeployment
    projectName: projectName
    voiceApiVersion: voiceApiVersion
    publicUrl: publicUrl
    allowedOrigins: allowedOrigins
    minReplicas: minReplicas
    maxReplicas: maxReplicas
    cpu: cpu
    talksPerReplica: talksPerReplica
    drainSeconds: drainSeconds
  }
}

@description('Where the broker answers.')
output BROKER_URL string = backend.outputs.url

@description('Name of the container app.')
output BROKER_APP_NAME string = backend.outputs.name

@description('The revision that this deployment made.')
output BROKER_REVISION string = backend.outputs.revision
